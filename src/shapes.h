/* shapes - the shapes of known models with random weights: how fast would a model be, before it is
 * there? A shape is a model file that no disk holds: the same tables of metadata and tensors, read
 * by the same code. It has no tokenizer.
 *
 * The weights are a pure function of the shape and the precision, the same on every device. They
 * are such that activations keep the size that they have in a trained model and logits are finite.
 */
#ifndef TC_SHAPES_H
#define TC_SHAPES_H

#include "arch.h"

/* How a tensor is filled, in words of 64 bits. Word i of the tensor, which is word n of the data of
 * all tensors, is
 *
 *     i % unit < random ? (hash(n) & mask) | bits : tail
 *
 * where hash(n) is the output of SplitMix64 in the state n * 0x9e3779b97f4a7c15, for n >= 1 thus
 * its n-th output when started at 0.
 * One rule for all types, so that the GPU needs one kernel:
 *     *_bias       both signs, 2^-4 <= magnitude < 2^-3
 *     binary32     the others: 1 <= value < 1.25
 *     binary16     both signs, 2^-7 <= magnitude < 2^-6
 *     W4           any q; scale 0.002; zero 7 in rows 0-7, 8 in rows 8-15: the mean is 0 */
typedef struct tc__pattern {
    unsigned long long unit, random, mask, bits, tail;
} tc__pattern;

TC_INTERNAL tc__pattern tc__shape_pattern(const tc__tensor *tensor);

/* A model's shape: the keys arch.* and the optional tensors of docs/format.md. What is zero is
 * absent; rope_theta is needed with RoPE. MPT's slopes come with ALiBi. */
typedef struct tc__shape_spec {
    const char *name, *family;
    uint32_t hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    uint32_t vocab_size, max_seq_len;
    double norm_eps, rope_theta;
    double rope_scale, clip_qkv;
    uint32_t norm, position, activation; /* TC__NORM_RMS, ... */
    uint32_t gated, parallel;
    bool shared_norm; /* no mlp_norm */
    bool norm_bias, qkv_bias, qk_norm, act_scales;
    bool tied; /* no head */
} tc__shape_spec;

/* Makes the tables of a shape; release with tc__model_file_close. precision and group_size as in
 * tc_model_open_shape. The sizes must be multiples of 16 (not the vocabulary); tc__weights_open
 * checks the rest. With `in_memory` the tensors' data are made too, by params->threads threads
 * (0: one per processor), and params->progress is told and may cancel; else there are no data. The
 * strings must outlive the file. Errors: ARGUMENT (precision, group size, sizes), MEMORY,
 * CANCELLED. */
TC_INTERNAL int tc__shape_make(const tc__shape_spec *spec, const char *precision, int group_size,
                               bool in_memory, const tc_model_params *params, tc__model_file *file,
                               tc_error *err);

/* The same for a built-in shape. Errors: ARGUMENT too for an unknown name. */
TC_INTERNAL int tc__shape_open(const char *name, const char *precision, int group_size,
                               bool in_memory, const tc_model_params *params, tc__model_file *file,
                               tc_error *err);

#endif /* TC_SHAPES_H */
