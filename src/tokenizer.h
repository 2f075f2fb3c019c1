/* tokenizer - text to token ids and back: SentencePiece BPE, exactly as the sentencepiece library
 * does it (identity normalisation, byte fallback), and the BPE of a tokenizer.json, exactly as the
 * tokenizers package does it; plus special tokens cut out of trusted text.
 *
 * SentencePiece: one run of text is escaped (space -> U+2581), gets a dummy prefix where asked, and
 * malformed UTF-8 becomes U+FFFD byte by byte. It is cut into characters (or user-defined pieces,
 * longest first, which never merge); then the pair of neighbours whose joined piece scores highest,
 * the leftmost among equals, is merged until none is left. A heap keeps that at O(n log n). What is
 * no piece is spelled in byte pieces or, in a vocabulary without them, becomes the unknown id, once
 * per stretch.
 *
 * tokenizer.json: the same, but which neighbours merge, and in which order, is a table. Pieces are
 * bytes, which merge within the words that split.h cuts a run into (after NFC, where asked), or
 * characters as above. Added tokens that are text (NeoX's runs of spaces) are looked for in all
 * text, those that are marks for the model in trusted bytes only.
 *
 * Three deliberate differences: a control or unknown piece is never made out of a run of text, not
 * even one of a single character (where sentencepiece would); an added token written like a mark,
 * <think> or [INST], is special although a tokenizer.json calls it none; special tokens are looked
 * for before normalisation, whatever it says.
 */
#ifndef TC_TOKENIZER_H
#define TC_TOKENIZER_H

#include "model_file.h"

enum { /* piece types of SentencePiece, as stored in tokenizer.types */
       TC__PIECE_NORMAL = 1,
       TC__PIECE_UNKNOWN = 2,
       TC__PIECE_CONTROL = 3,
       TC__PIECE_USER = 4,
       TC__PIECE_UNUSED = 5,
       TC__PIECE_BYTE = 6
};

#define TC__MAX_PIECE 1024u /* bytes of one piece */

typedef struct tc__tokenizer tc__tokenizer; /* immutable once made; any number of threads */

/* Builds the tokenizer out of a model file's metadata (docs/format.md). *tokenizer is NULL (and the
 * result TC_OK) when the file says it has none. vocab_size bounds every id. The file must outlive
 * the tokenizer.
 * Errors: FORMAT, UNSUPPORTED (another type of tokenizer), MEMORY. */
TC_INTERNAL int tc__tokenizer_open(const tc__model_file *file, uint32_t vocab_size,
                                   tc__tokenizer **tokenizer, tc_error *err);
TC_INTERNAL void tc__tokenizer_close(tc__tokenizer *tokenizer);

/* -1 if there is none. What ends a reply is not the tokenizer's business: chat.stop_ids. */
TC_INTERNAL int32_t tc__tokenizer_bos(const tc__tokenizer *tokenizer);
TC_INTERNAL bool tc__tokenizer_adds_bos(const tc__tokenizer *tokenizer);

/* The longest special piece that the text begins with: its length in bytes and *id; 0 and -1 if
 * there is none. Special are control pieces, the unknown piece, added tokens that are no text. */
TC_INTERNAL size_t tc__special_at(const tc__tokenizer *tokenizer, const char *text, size_t len,
                                  int32_t *id);

/* Text whose bytes are marked as the template's (trusted: special pieces are recognised) or a
 * person's (never). One span per piece of either kind, in order; empty spans are allowed. */
typedef struct tc__span {
    const char *text;
    size_t len;
    bool trusted;
} tc__span;

enum {                       /* what lies before the text that is encoded */
       TC__AFTER_TEXT = 0,   /* tokens of text, which it continues: no dummy prefix */
       TC__AT_START = 1,     /* nothing (or BOS): a dummy prefix */
       TC__AFTER_SPECIAL = 2 /* a special piece: a dummy prefix in legacy mode */
};

/* Encodes the concatenation of the spans and appends the ids. Special pieces are found in trusted
 * bytes only, never across a border to a person's bytes; the text between two of them is encoded as
 * one run, whatever spans it is made of. `before` says what its first byte follows; a run behind a
 * special piece gets a dummy prefix of its own only if the tokenizer is `legacy`.
 *
 * For text that is trusted as a whole the ids are those of transformers 4's slow LlamaTokenizer
 * (use_fast=False, both values of `legacy`), which runs sentencepiece itself. The fast class of 4.x
 * agrees, except that with legacy=False a text that begins with a space or U+2581 gets no prefix
 * from it. 5.x made from a tokenizer.model has that difference for both values, and another merge
 * order, so that it splits runs of spaces otherwise ("  hi"); neither is sentencepiece's answer.
 * Errors: MEMORY, ARGUMENT (more than 700 MB of text). */
TC_INTERNAL int tc__encode(const tc__tokenizer *tokenizer, const tc__span *spans, size_t n_spans,
                           int before, tc__ids *ids, tc_error *err);

/* Decoding, token by token, for streaming. */
typedef struct tc__decoder {
    const tc__tokenizer *tokenizer;
    bool at_start; /* the next text piece loses its dummy prefix, a byte-level one a space */
} tc__decoder;

/* A decoder at the start of a text that has a space before it, or (at_start false) one that
 * continues earlier tokens. */
TC_INTERNAL tc__decoder tc__decoder_make(const tc__tokenizer *tokenizer, bool at_start);

/* Appends the raw bytes of one token: byte pieces give their byte (so the output may end inside a
 * UTF-8 character), the unknown piece its surface; control pieces, added tokens and ids without a
 * piece give nothing. Only the first text of a decoder that begins at a start loses a leading
 * U+2581. id is range-checked by the caller (0 <= id < vocab_size). `special` (NULL allowed) is set
 * to whether the token is a control piece or an added token. */
TC_INTERNAL void tc__decode_one(tc__decoder *decoder, int32_t id, tc__buf *bytes, bool *special);

/* Decodes a whole text: as above, with malformed UTF-8 in a stretch of byte pieces replaced by one
 * U+FFFD per byte. Errors: MEMORY, ARGUMENT (an id is outside the vocabulary). */
TC_INTERNAL int tc__decode(const tc__tokenizer *tokenizer, const int32_t *ids, size_t n,
                           tc__buf *text, tc_error *err);

#endif /* TC_TOKENIZER_H */
