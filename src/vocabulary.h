/* vocabulary - what a tokenizer is made of: pieces, merges and added tokens, read out of a model
 * file, checked, and indexed so that they are found by their bytes or by what they are joined of.
 * How text becomes tokens is tokenizer.c's business.
 */
#ifndef TC_VOCABULARY_H
#define TC_VOCABULARY_H

#include "tokenizer.h"

typedef struct tc__piece {
    const char *text; /* in the model file; len 0: the id has no piece */
    uint32_t len;
    uint32_t rank; /* SentencePiece: the lower, the higher the score */
    uint8_t type;
} tc__piece;

/* Pieces that text can become, found by their bytes: open addressing, at most half full. */
typedef struct tc__piece_slot {
    uint32_t hash;
    int32_t id; /* -1: empty */
} tc__piece_slot;

/* Merges, found by the ids of the two pieces: open addressing, at most two thirds full. */
typedef struct tc__merge_slot {
    int32_t left, right; /* left -1: empty */
    int32_t id;          /* of both together */
    uint32_t rank;       /* the lowest is merged first */
} tc__merge_slot;

enum {                             /* flags of added tokens, as in tokenizer.added_flags */
       TC__ADDED_TEXT = 1,         /* anybody's text may become it; else it is special */
       TC__ADDED_SHOWN = 2,        /* decoding gives its text; else nothing */
       TC__ADDED_LSTRIP = 4,       /* takes the white space before it */
       TC__ADDED_RSTRIP = 8,       /* and behind it */
       TC__ADDED_SINGLE_WORD = 16, /* not beside a word character */
       TC__ADDED_NORMALIZED = 32,  /* looked for in normalised text */
       TC__ADDED_ALL = 63
};

typedef struct tc__added {
    const char *text;
    size_t len;
    int32_t id;
    uint32_t flags;
    uint32_t order; /* among equal texts the lowest one counts */
} tc__added;

/* Distinct texts in the order of their bytes, for longest-prefix matches. */
typedef struct tc__added_list {
    tc__added *at;
    size_t n;
    bool begins[256]; /* some entry begins with this byte */
} tc__added_list;

struct tc__tokenizer {
    tc__piece *pieces; /* [n_pieces] */
    uint32_t n_pieces, vocab_size;
    uint32_t max_len;      /* bytes of the longest piece that text can become */
    tc__piece_slot *slots; /* NULL when nobody asks for pieces by their bytes */
    uint32_t slot_mask;
    tc__merge_slot *merges; /* NULL: SentencePiece, which merges by score */
    uint32_t merge_mask;
    /* Special tokens; text tokens before and after normalisation; SentencePiece's user-defined
     * pieces. */
    tc__added_list special, plain, normalized, user;
    tc__added *added;   /* [n_added] in the file's order */
    uint32_t *added_at; /* [vocab_size] 1 + index in `added`, 0: not an added token */
    int32_t byte_ids[256];
    bool bytes; /* pieces are bytes; else characters, with U+2581 for a space */
    bool byte_fallback, has_unused, ignore_merges, nfc;
    bool add_bos, dummy_prefix, legacy, single_prefix;
    int split; /* TC__SPLIT_* */
    int32_t unk_id, bos_id;
    const char *unk_surface;
    size_t unk_surface_len;
};

/* The id of the piece with these bytes among those that text can become; -1 if there is none. */
TC_INTERNAL int32_t tc__find_piece(const tc__tokenizer *t, const char *text, size_t len);

/* The merge of two neighbours; NULL if there is none. */
TC_INTERNAL const tc__merge_slot *tc__find_merge(const tc__tokenizer *t, int32_t left,
                                                 int32_t right);

/* The longest entry that text begins with, NULL if none. */
TC_INTERNAL const tc__added *tc__find_added(const tc__added_list *list, const char *text,
                                            size_t len);

/* The value of a piece "<0x1F>"; -1 if it is not written like that. */
TC_INTERNAL int tc__byte_value(const tc__piece *piece);

#endif /* TC_VOCABULARY_H */
