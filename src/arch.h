/* arch - the hyper-parameters of a model, read and checked once, and the tensors of its layers.
 */
#ifndef TC_ARCH_H
#define TC_ARCH_H

#include "model_file.h"

typedef struct tc__arch {
    uint32_t hidden_size, intermediate_size, layers;
    uint32_t heads, kv_heads, head_dim;
    uint32_t vocab_size, max_seq_len;
    float norm_eps;
    double rope_theta;
} tc__arch;

typedef struct tc__layer {
    const tc__tensor *attn_norm; /* [hidden] F32 */
    const tc__tensor *qkv;       /* [(heads + 2 kv_heads) * head_dim, hidden] */
    const tc__tensor *o;         /* [hidden, heads * head_dim] */
    const tc__tensor *mlp_norm;  /* [hidden] F32 */
    const tc__tensor *gate_up;   /* [2 * intermediate, hidden], rows interleaved in eights */
    const tc__tensor *down;      /* [hidden, intermediate] */
} tc__layer;

/* A model file understood: pointers into the mapped file. */
typedef struct tc__weights {
    tc__arch arch;
    const tc__tensor *embed, *norm, *head; /* head == embed when tied */
    tc__layer *layers;                     /* [arch.layers] */
    /* Of all tensors, in the file's order, gaps included; NULL: random numbers, made on the device
     * (shapes.h). */
    const uint8_t *data;
    bool in_file; /* data are pages of a file: the system counts them as available memory */
    size_t data_bytes;
    size_t parameters;                     /* weights, embeddings included */
    size_t layer_parameters;               /* of these, in the matrices of the layers */
    size_t tensor_bytes;                   /* of all tensors */
    size_t bytes_per_token;                /* read to decode one token, KV cache excluded */
} tc__weights;

/* Reads arch.* (an unknown arch.* key is refused by name), finds every tensor of the family and
 * checks its type and full shape. On failure nothing is held. The file must outlive the weights.
 * Errors: FORMAT, UNSUPPORTED, MEMORY. */
TC_INTERNAL int tc__weights_open(const tc__model_file *file, tc__weights *weights, tc_error *err);
TC_INTERNAL void tc__weights_close(tc__weights *weights);

/* "W4A16 g128", "W16A16", ... into text. */
TC_INTERNAL void tc__precision_name(const tc__weights *weights, char *text, size_t size);

#endif /* TC_ARCH_H */
