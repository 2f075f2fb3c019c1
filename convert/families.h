/* families - the model families that convert reads: for each a page of data in families.c that says
 * how config.json names the sizes, which settings are understood, what a block computes and which
 * tensors of the checkpoint become which of the model file. How to add one: docs/families.md.
 *
 * No code asks for a family by name.
 */
#ifndef CONVERT_FAMILIES_H
#define CONVERT_FAMILIES_H

#include "src/arch.h"

/* ---- config.json ---- */

/* A size of the model; the keys are tried in order. */
typedef enum family_size {
    FAMILY_HIDDEN,
    FAMILY_INTERMEDIATE,
    FAMILY_LAYERS,
    FAMILY_HEADS,
    FAMILY_KV_HEADS,
    FAMILY_HEAD_DIM,
    FAMILY_VOCAB,
    FAMILY_POSITIONS,
    FAMILY_SIZES
} family_size;

#define FAMILY_MAX_KEYS 3

typedef struct family_keys {
    const char *keys[FAMILY_MAX_KEYS]; /* "a.b": b inside of the object a */
    uint32_t fallback;                 /* without any of them; 0: derived, or an error */
} family_keys;

/* A setting that must have this value (false is 0, true 1), because only that is implemented;
 * `missing` is what a config.json without it means. */
typedef struct family_setting {
    const char *key;
    double value, missing;
} family_setting;

/* A text setting that may be absent or one of these, in lower case. */
typedef struct family_word {
    const char *key;
    const char *values[3];
} family_word;

/* model_type as it stands in config.json, lower case. `implies`: a setting that old files of this
 * type leave out, being true. */
typedef struct family_type {
    const char *name, *implies;
} family_type;

/* ---- tensors ---- */

/* A number of rows or columns, computed from the sizes. */
typedef enum family_dim {
    FAMILY_ONE, /* columns of a vector */
    FAMILY_H,   /* hidden_size */
    FAMILY_I,   /* intermediate_size */
    FAMILY_Q,   /* heads * head_dim */
    FAMILY_KV,  /* kv_heads * head_dim */
    FAMILY_QKV, /* (heads + 2 kv_heads) * head_dim */
    FAMILY_D    /* head_dim */
} family_dim;

/* How the rows of a tensor lie in its parts. */
typedef enum family_order {
    FAMILY_JOINED, /* part by part */
    FAMILY_EIGHTS, /* two parts, their rows alternating in eights */
    FAMILY_GROUPED /* one part: for each key-value head its query heads, the key, the value */
} family_order;

typedef enum family_presence {
    FAMILY_REQUIRED,
    FAMILY_ONES /* a divisor: where it is missing all ones, and left out if it is so everywhere */
} family_presence;

#define FAMILY_MAX_PARTS 3
#define FAMILY_MAX_TENSORS 24 /* of a layer */

/* A tensor of the model file (docs/format.md) and what it is made of. */
typedef struct family_tensor {
    const char *name; /* in the model file, behind the layer's number; NULL ends a list */
    family_dim columns;
    family_order order;
    family_presence presence;
    struct {
        const char *name; /* in the checkpoint, behind the layer's prefix: of a matrix the linear
                           * layer, of a vector the tensor */
        family_dim rows;
    } parts[FAMILY_MAX_PARTS];
} family_tensor;

/* ---- a family ---- */

typedef struct family {
    const char *name;   /* arch.family */
    const char *models; /* for people */
    family_type types[3];
    const char *architectures[3]; /* lower case; config.json may name one of them, or none */
    const family_setting *when;   /* which of several pages of one model_type; key NULL ends */

    family_keys sizes[FAMILY_SIZES];
    const char *ratio_key; /* intermediate_size / hidden_size, where there is no size; or NULL */
    uint32_t ratio;        /* without that key; 0: intermediate_size is required */
    const char *eps_key;
    double eps;
    bool tied;   /* what a config.json without tie_word_embeddings means */
    bool window; /* without use_sliding_window: whether sliding_window counts */
    const char *clip_qkv, *alibi_bias_max; /* keys, or NULL */
    const family_setting *settings;        /* besides those of all families; key NULL ends */
    const family_word *words;              /* key NULL ends */

    uint32_t norm, position, activation; /* TC__NORM_RMS... */
    bool gated, parallel;

    const char *embed, *head; /* modules with a `weight` */
    const char *layer;        /* the layers' prefix, without number: "model.layers." */
    const family_tensor *layer_tensors, *end_tensors; /* per layer; behind them, before the head */
} family;

/* The pages, in the order in which they are tried; NULL past the end. */
const family *family_at(int index);

/* Settings that every family must have unless its own list has the key. key NULL ends. */
extern const family_setting family_common[];

/* "LLaMA ... (llama), Mistral (mistral), ..." into text. */
void family_list(char *text, size_t size);

#endif /* CONVERT_FAMILIES_H */
