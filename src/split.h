/* split - cuts a text into the words that byte-level BPE merges within: the pre-tokenizers of the
 * model families, written out as scanners instead of the regular expressions they are given as.
 *
 * A word is looked for at the place where the last one ended; the rules of split.c are tried in
 * their order. Linear in the text, whatever it is.
 */
#ifndef TC_SPLIT_H
#define TC_SPLIT_H

#include "base.h"

enum {
    TC__SPLIT_NONE,   /* the text is one word */
    TC__SPLIT_GPT2,   /* GPT-2, GPT-NeoX (MPT) */
    TC__SPLIT_LLAMA3, /* LLaMA-3: numbers in threes */
    TC__SPLIT_QWEN2,  /* Qwen 2, 2.5, 3: digits one by one */
    TC__SPLIT_FALCON  /* punctuation, then GPT-2, then digits in threes */
};

/* "none", "gpt2", ...: NULL past the end; the index is the number above. */
TC_INTERNAL const char *tc__split_name(int index);

typedef struct tc__splitter {
    int kind; /* TC__SPLIT_* */
    const char *text;
    size_t len, at;
    size_t part_end, word_end; /* Falcon: of the run of (no) punctuation, and GPT-2's word in it */
} tc__splitter;

/* Over valid UTF-8, which must stay while it is cut. */
TC_INTERNAL tc__splitter tc__splitter_make(int kind, const char *text, size_t len);

/* The next word, never empty; false at the end. Words follow each other without gaps. */
TC_INTERNAL bool tc__split_next(tc__splitter *splitter, const char **word, size_t *len);

#endif /* TC_SPLIT_H */
