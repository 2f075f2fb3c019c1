/* arch - the hyper-parameters of a model, read and checked once, and the tensors of its layers.
 */
#ifndef TC_ARCH_H
#define TC_ARCH_H

#include "model_file.h"

/* What a block computes is data: no code asks for a family's name. The values are those of the
 * model file's keys (docs/format.md). */
enum { TC__NORM_RMS, TC__NORM_LAYER };
enum { TC__POSITION_ROPE, TC__POSITION_ALIBI };
enum { TC__ACT_SILU, TC__ACT_GELU };

typedef struct tc__arch {
    uint32_t hidden_size, intermediate_size, layers;
    uint32_t heads, kv_heads, head_dim;
    uint32_t vocab_size, max_seq_len;
    uint32_t norm, position, activation; /* TC__NORM_RMS, ... */
    bool gated, parallel;
    uint32_t sliding_window; /* 0: none; for messages */
    float norm_eps;
    float clip_qkv;      /* 0: no clipping */
    float rope_scale;    /* of cosines and sines */
    double *frequencies; /* [head_dim / 2] radians per position, with RoPE; owned */
    float *slopes;       /* [heads], with ALiBi; owned */
} tc__arch;

/* Optional tensors are NULL. Vectors are F32. */
typedef struct tc__layer {
    const tc__tensor *attn_norm, *attn_norm_bias; /* [hidden] */
    const tc__tensor *qkv;                        /* [(heads + 2 kv_heads) * head_dim, hidden] */
    const tc__tensor *qkv_bias;                   /* [(heads + 2 kv_heads) * head_dim] */
    const tc__tensor *q_norm, *k_norm;            /* [head_dim], both or none */
    const tc__tensor *o;                          /* [hidden, heads * head_dim] */
    const tc__tensor *mlp_norm, *mlp_norm_bias;   /* [hidden]; none: attention's normed input */
    /* Gated: [2 * intermediate, hidden], rows of gate and up interleaved in eights; else
     * [intermediate, hidden]. */
    const tc__tensor *gate_up;
    const tc__tensor *act_scales; /* [intermediate] */
    const tc__tensor *down;       /* [hidden, intermediate] */
} tc__layer;

/* A model file understood: pointers into the mapped file. */
typedef struct tc__weights {
    tc__arch arch;
    const tc__tensor *embed, *head;     /* head == embed when tied */
    const tc__tensor *norm, *norm_bias; /* [hidden], the final norm */
    tc__layer *layers;                  /* [arch.layers] */
    /* Of all tensors, in the file's order, gaps included; NULL: random numbers, made on the device
     * (shapes.h). */
    const uint8_t *data;
    bool in_file; /* data are pages of a file: the system counts them as available memory */
    size_t data_bytes;
    int fd; /* of that file, and where in it the data begin; only with in_file */
    size_t data_at;
    size_t parameters;       /* weights, embeddings included */
    size_t layer_parameters; /* of these, in the matrices of the layers */
    size_t tensor_bytes;     /* of all tensors */
    size_t bytes_per_token;  /* read to decode one token, KV cache excluded */
    bool head_in_8;          /* the device makes 8 bits of the head's numbers, */
    size_t head_apart_bytes; /* and so many lie apart: the embedding needs the file's, too, or there
                                are 8 rows at most, which take more as a block of 16 */
} tc__weights;

/* Reads arch.* (an unknown arch.* key is refused by name), finds every tensor of the family and
 * checks its type and full shape. On failure nothing is held. The file must outlive the weights.
 * Errors: FORMAT, UNSUPPORTED, MEMORY. */
TC_INTERNAL int tc__weights_open(const tc__model_file *file, tc__weights *weights, tc_error *err);
TC_INTERNAL void tc__weights_close(tc__weights *weights);

/* The head shall have 8 bits: whole numbers, and for each row and group of columns a scale in
 * binary16 (quantise_rows of src/kernels/rows.cuh). Changes what is said of the model; its numbers
 * are the device's work. */
TC_INTERNAL void tc__weights_head_in_8(tc__weights *weights);
/* Columns of a group of it; its bytes, whole blocks of 16 rows. */
TC_INTERNAL size_t tc__head_8_group(const tc__weights *weights);
TC_INTERNAL size_t tc__head_8_bytes(const tc__weights *weights);

/* "W4A16 g128", "W16A16, int8 head", ... into text. */
TC_INTERNAL void tc__precision_name(const tc__weights *weights, char *text, size_t size);

#endif /* TC_ARCH_H */
