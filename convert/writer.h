/* writer - writes a flat model file (docs/format.md) front to back, without ever holding it.
 *
 *     writer w;
 *     writer_init(&w);
 *     writer_text(&w, "general.name", "x", 1); ...      metadata, in any order
 *     writer_declare(&w, "embed", TC__F16, 0, ...); ... tensors, in file order
 *     writer_begin(&w, "model.bin", &err)               places everything, opens the temporary file
 *     writer_put(&w, bytes, len, &err); ...             the tensors' bytes, back to back
 *     writer_finish(&w, &err)                           table, header, fsync, rename
 *     writer_free(&w)                                   always; removes an unfinished file
 *
 * Every size is known before the first byte is written, so that the file is written in its own
 * order; only the tensor table and the header, which hold the checksums, are filled in at the end.
 * The destination keeps its old contents until writer_finish has succeeded.
 *
 * Errors: IO (with the system's reason), MEMORY, ARGUMENT (the caller broke the order above).
 */
#ifndef CONVERT_WRITER_H
#define CONVERT_WRITER_H

#include "src/model_file.h"

typedef struct writer_tensor {
    char *name;
    uint32_t type, group_size; /* as in the tensor table */
    uint64_t rows, columns;    /* a vector has columns == 1 */
    uint64_t offset, size;     /* in the file, bytes; set by writer_begin */
    uint32_t crc;              /* of the bytes put so far */
} writer_tensor;

typedef struct writer {
    tc__buf metas, table;
    uint32_t meta_count;
    writer_tensor *tensors; /* [tensor_count], in file order */
    size_t tensor_count, tensor_cap;
    size_t current;      /* the tensor that the next byte belongs to */
    uint64_t put;        /* bytes of it that have been written */
    uint64_t at, pushed; /* bytes of the file that have been written, and handed to the disk */
    uint64_t file_bytes; /* of the whole file; set by writer_begin */
    tc__replace replace;
    bool open, failed; /* failed: out of memory while collecting */
} writer;

void writer_init(writer *w);
void writer_free(writer *w);

/* Metadata. Out of memory is reported by writer_begin. */
void writer_meta(writer *w, const tc__meta *meta);
void writer_u32(writer *w, const char *key, const uint32_t *values, size_t count);
void writer_f64(writer *w, const char *key, double value);
void writer_f64s(writer *w, const char *key, const double *values, size_t count);
void writer_f32s(writer *w, const char *key, const float *values, size_t count);
void writer_text(writer *w, const char *key, const char *text, size_t len);
/* `strings` in the file's form: count times u32 length, bytes (writer_add_string makes it). */
void writer_strings(writer *w, const char *key, const tc__buf *strings, size_t count);
void writer_add_string(tc__buf *strings, const char *text, size_t len);

/* The next tensor of the file. columns == 0 declares a vector of `rows` numbers. */
void writer_declare(writer *w, const char *name, uint32_t type, uint32_t group_size, uint64_t rows,
                    uint64_t columns);

/* Of two types of the same size (F16, BF16): which it is, before the tensor's last byte. */
void writer_set_type(writer *w, uint32_t type);

int writer_begin(writer *w, const char *path, tc_error *err);

/* The next bytes of the current tensor; when it is complete the next one follows. */
int writer_put(writer *w, const void *bytes, size_t len, tc_error *err);

/* Completes the file and moves it to its place. */
int writer_finish(writer *w, tc_error *err);

#endif /* CONVERT_WRITER_H */
