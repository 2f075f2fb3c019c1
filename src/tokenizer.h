/* tokenizer - text to token ids and back: SentencePiece BPE, exactly as the sentencepiece library
 * does it (identity normalisation, byte fallback), plus special pieces cut out of trusted text.
 *
 * Encoding follows docs/format.md's keys: a run of text is escaped (space -> U+2581), gets a dummy
 * prefix where asked, malformed UTF-8 becomes U+FFFD byte by byte, and the pair of neighbours whose
 * joined piece scores highest is merged until none is left. A heap keeps that at O(n log n).
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

typedef struct tc__tokenizer tc__tokenizer; /* immutable once made; any number of threads */

/* Builds the tokenizer out of a model file's metadata. *tokenizer is NULL (and the result TC_OK)
 * when the file says it has none. vocab_size bounds every id. The file must outlive it.
 * Errors: FORMAT, UNSUPPORTED (another type of tokenizer), MEMORY. */
TC_INTERNAL int tc__tokenizer_open(const tc__model_file *file, uint32_t vocab_size,
                                   tc__tokenizer **tokenizer, tc_error *err);
TC_INTERNAL void tc__tokenizer_close(tc__tokenizer *tokenizer);

/* -1 if there is none. */
TC_INTERNAL int32_t tc__tokenizer_bos(const tc__tokenizer *tokenizer);
TC_INTERNAL int32_t tc__tokenizer_eos(const tc__tokenizer *tokenizer);
TC_INTERNAL bool tc__tokenizer_adds_bos(const tc__tokenizer *tokenizer);

/* Text whose bytes are marked as the template's (trusted: special pieces are recognised) or a
 * person's (never). One span per piece of either kind, in order; empty spans are allowed. */
typedef struct tc__span {
    const char *text;
    size_t len;
    bool trusted;
} tc__span;

/* Encodes the concatenation of the spans and appends the ids. Special pieces (control pieces and
 * added tokens, longest match first) are found in trusted bytes only, never across a border to a
 * person's bytes; the text between two of them is encoded as one run, whatever spans it is made of.
 * `at_start`: this is the start of a text, so that its first run gets the dummy prefix; later runs
 * get one only if the tokenizer is `legacy`. With at_start false the first run continues earlier
 * tokens and gets none (in legacy mode a run right after a special piece still does).
 * Errors: MEMORY. */
TC_INTERNAL int tc__encode(const tc__tokenizer *tokenizer, const tc__span *spans, size_t n_spans,
                           bool at_start, tc__ids *ids, tc_error *err);

/* Decoding, token by token, for streaming. */
typedef struct tc__decoder {
    const tc__tokenizer *tokenizer;
    bool at_start; /* the next text piece loses its dummy prefix */
} tc__decoder;

/* A decoder at the start of a text, or (at_start false) one that continues earlier tokens. */
TC_INTERNAL tc__decoder tc__decoder_make(const tc__tokenizer *tokenizer, bool at_start);

/* Appends the raw bytes of one token: byte pieces give their byte (so the output may end inside a
 * UTF-8 character), control pieces and ids without a piece give nothing. id is range-checked by the
 * caller. `special` (NULL allowed) is set when the token is a control piece or special. */
TC_INTERNAL void tc__decode_one(tc__decoder *decoder, int32_t id, tc__buf *bytes, bool *special);

/* Decodes a whole text: as above, with malformed UTF-8 out of byte pieces replaced by one U+FFFD
 * per byte. Errors: MEMORY, ARGUMENT (an id is outside the vocabulary). */
TC_INTERNAL int tc__decode(const tc__tokenizer *tokenizer, const int32_t *ids, size_t n,
                           tc__buf *text, tc_error *err);

#endif /* TC_TOKENIZER_H */
