/* dtype - the element types of tensors in checkpoints, which every container's reader knows. */
#ifndef CKPT_DTYPE_H
#define CKPT_DTYPE_H

#include "src/base.h"

#define CKPT_MAX_DIMS 8

typedef enum ckpt_dtype {
    CKPT_F64,
    CKPT_F32,
    CKPT_F16,
    CKPT_BF16,
    CKPT_I64,
    CKPT_I32,
    CKPT_I16,
    CKPT_I8,
    CKPT_U8,
    CKPT_BOOL,
    CKPT_DTYPES /* how many there are */
} ckpt_dtype;

/* Bytes of one element; "F16", "BF16", "I32"... */
size_t ckpt_dtype_size(ckpt_dtype dtype);
const char *ckpt_dtype_name(ckpt_dtype dtype);

#endif /* CKPT_DTYPE_H */
