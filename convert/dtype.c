#include "dtype.h"

static const struct {
    const char *name;
    size_t size;
} ckpt_dtypes[CKPT_DTYPES] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                              {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};

size_t ckpt_dtype_size(ckpt_dtype dtype) {
    return ckpt_dtypes[dtype].size;
}

const char *ckpt_dtype_name(ckpt_dtype dtype) {
    return ckpt_dtypes[dtype].name;
}
