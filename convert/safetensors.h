/* safetensors - names, types, shapes and places of the tensors in a .safetensors file:
 *
 *     u64 N | N bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}} | data
 *
 * with offsets relative to the data. As the format demands, the tensors must cover the data without
 * gaps and without overlaps, which also shows a file that was cut short.
 */
#ifndef CONVERT_SAFETENSORS_H
#define CONVERT_SAFETENSORS_H

#include "dtype.h"

#define ST_MAX_HEADER 100000000u /* the cap of the reference implementation */

typedef struct st_tensor {
    const char *name; /* UTF-8, may contain anything, NUL-terminated */
    size_t name_len;
    ckpt_dtype dtype;
    int ndim;
    int64_t shape[CKPT_MAX_DIMS];
    const uint8_t *data; /* in the file, no particular alignment */
    size_t size;         /* bytes: elements times size of the type, checked */
} st_tensor;

typedef struct st_file {
    st_tensor *tensors; /* [count] in order of their data */
    size_t count;
    tc__buf names;
} st_file;

/* Whether the bytes begin as a safetensors file does. */
bool st_detect(const uint8_t *bytes, size_t size);

/* Reads the header of a mapped file. `file` is only for messages. Errors: FORMAT, UNSUPPORTED (an
 * element type or a number of dimensions that dtype.h does not have), MEMORY. On failure *st
 * is empty. Names that occur twice are left for the caller to find. */
int st_open(const char *file, const uint8_t *bytes, size_t size, st_file *st, tc_error *err);

void st_close(st_file *st);

#endif /* CONVERT_SAFETENSORS_H */
