/* base - what every other room stands on: errors, memory, bytes, half precision, mapped files.
 *
 * Internal names are prefixed tc__ and declared TC_INTERNAL: hidden in the module build, static in
 * the amalgamation. Nothing here allocates unless it says so; nothing here has state.
 */
#ifndef TC_BASE_H
#define TC_BASE_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* realpath */
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error                                                                                             \
    "tinychat files are little-endian and are mapped in place: big-endian hosts are not supported"
#endif

#include "tinychat.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef TC_INTERNAL
#if defined(__GNUC__)
#define TC_INTERNAL __attribute__((visibility("hidden")))
#else
#define TC_INTERNAL
#endif
#endif

#if defined(__GNUC__)
#define TC_PRINTF(format_arg, first_arg) __attribute__((format(printf, format_arg, first_arg)))
#else
#define TC_PRINTF(format_arg, first_arg)
#endif

#define TC_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- errors ---- */

/* Fills *err (NULL allowed) with a code and a printf-style message, cut to fit and with '?' for
 * every character that could play with a terminal: controls and marks that turn the direction of
 * text (names out of files end up in messages); returns the code. */
TC_INTERNAL int tc__fail(tc_error *err, int code, const char *format, ...) TC_PRINTF(3, 4);

/* The message for a failed allocation of `bytes` for `what`; returns TC_ERR_MEMORY. */
TC_INTERNAL int tc__fail_memory(tc_error *err, const char *what, size_t bytes);

/* TC_ERR_ARGUMENT, saying "`name` is NULL", unless `given`: what a caller must not leave out. */
TC_INTERNAL int tc__need(bool given, const char *name, tc_error *err);

/* Marks success in *err (NULL allowed); returns TC_OK. */
TC_INTERNAL int tc__ok(tc_error *err);

/* ---- memory ---- */

/* a * b and a + b; false if the result does not fit (then *result is unchanged). */
TC_INTERNAL bool tc__mul(size_t a, size_t b, size_t *result);
TC_INTERNAL bool tc__add(size_t a, size_t b, size_t *result);

/* calloc that treats count * size overflow as failure and never returns NULL for size 0. */
TC_INTERNAL void *tc__calloc(size_t count, size_t size);

/* `bytes` zeroed bytes at an address that is a multiple of 64 (a cache line, a vector register);
 * free with tc__free_aligned. NULL on failure. */
TC_INTERNAL void *tc__alloc_aligned(size_t bytes);
TC_INTERNAL void tc__free_aligned(void *memory);

/* Bytes of memory that the system could give without swapping, and the limits of a container
 * leave; all there is where it does not say. */
TC_INTERNAL size_t tc__available_memory(void);
/* Bytes that the control groups leave which the file `groups` names (/proc/self/cgroup) and the
 * folders under `root` describe (/sys/fs/cgroup); SIZE_MAX without a limit. */
TC_INTERNAL size_t tc__group_memory(const char *groups, const char *root);
/* Processors that these groups may keep busy, at least 1; SIZE_MAX without a limit. */
TC_INTERNAL size_t tc__group_processors(const char *groups, const char *root);
/* Processors on which a thread may run, by its status (/proc/thread-self/status); SIZE_MAX if that
 * does not say. */
TC_INTERNAL size_t tc__allowed_processors(const char *status);

/* A growing byte string. Zero-initialise it; `failed` stays set after a failed allocation and every
 * later append is a no-op, so that callers check once at the end. data is NUL-terminated (not
 * counted in len) whenever it is not NULL. */
typedef struct tc__buf {
    char *data;
    size_t len, cap;
    bool failed;
} tc__buf;

TC_INTERNAL void tc__buf_add(tc__buf *buf, const void *bytes, size_t len);
TC_INTERNAL void tc__buf_str(tc__buf *buf, const char *text);
TC_INTERNAL void tc__buf_printf(tc__buf *buf, const char *format, ...) TC_PRINTF(2, 3);
TC_INTERNAL void tc__buf_free(tc__buf *buf);

/* A growing array of token ids; the same rules as tc__buf. */
typedef struct tc__ids {
    int32_t *data;
    size_t len, cap;
    bool failed;
} tc__ids;

TC_INTERNAL void tc__ids_add(tc__ids *ids, const int32_t *more, size_t n);
TC_INTERNAL void tc__ids_push(tc__ids *ids, int32_t id);
TC_INTERNAL void tc__ids_free(tc__ids *ids);

/* malloc'ed copy of len bytes plus a NUL; NULL on failure. */
TC_INTERNAL char *tc__copy(const char *text, size_t len);

/* ---- bytes ---- */

/* A bounds-checked cursor over untrusted bytes. A read past the end sets `failed`, returns zero
 * and leaves the cursor at the end. */
typedef struct tc__cursor {
    const uint8_t *at, *end;
    bool failed;
} tc__cursor;

TC_INTERNAL tc__cursor tc__cursor_make(const void *bytes, size_t len);
TC_INTERNAL size_t tc__cursor_left(const tc__cursor *cursor);
/* The next len bytes, NULL (and failed) if there are fewer. */
TC_INTERNAL const uint8_t *tc__take(tc__cursor *cursor, size_t len);
TC_INTERNAL uint32_t tc__take_u32(tc__cursor *cursor);
TC_INTERNAL uint64_t tc__take_u64(tc__cursor *cursor);

/* CRC-32 as in zip and zlib (polynomial 0xEDB88320, initial and final complement). Start with
 * crc = 0; feed pieces by passing the previous result. About 2.5 GB/s (16 bytes a step). */
TC_INTERNAL uint32_t tc__crc32(uint32_t crc, const void *bytes, size_t len);

/* Decodes the UTF-8 character at s (len >= 1 bytes there). Returns its length in bytes and the code
 * point; for a malformed sequence (overlong forms, surrogates, above U+10FFFF, stray or missing
 * continuation bytes) returns 1 and *code = UINT32_MAX. */
TC_INTERNAL size_t tc__utf8_decode(const char *s, size_t len, uint32_t *code);
/* True if these bytes, too few for a character, may still become one. */
TC_INTERNAL bool tc__utf8_unfinished(const char *s, size_t len);
/* Writes the UTF-8 form of a code point (<= 0x10FFFF) to out, returns 1 to 4. */
TC_INTERNAL size_t tc__utf8_encode(uint32_t code, char out[4]);

/* ---- flags between threads ---- */

/* A flag that one thread or signal handler raises and another one looks at. */
typedef struct tc__flag {
    int raised;
} tc__flag;

TC_INTERNAL void tc__flag_set(tc__flag *flag, bool raised);
TC_INTERNAL bool tc__flag_get(const tc__flag *flag);

/* ---- half precision ---- */

/* IEEE binary16 and bfloat16 to binary32, exact; and back with round-to-nearest-even (overflow
 * becomes infinity, NaN stays NaN). */
TC_INTERNAL float tc__f16_to_f32(uint16_t half);
TC_INTERNAL uint16_t tc__f32_to_f16(float value);
TC_INTERNAL float tc__bf16_to_f32(uint16_t bf16);

/* ---- files ---- */

/* A whole file mapped read-only. An empty file has data == NULL and size 0. */
typedef struct tc__map {
    const uint8_t *data;
    size_t size;
} tc__map;

/* Errors: IO (with the system's reason; directories and special files are refused). */
TC_INTERNAL int tc__map_open(const char *path, tc__map *map, tc_error *err);
/* The same, and leaves the file open for reading beside the mapping (pread), to be closed by the
 * caller; -1 if the file is empty. */
TC_INTERNAL int tc__map_open_fd(const char *path, tc__map *map, int *fd, tc_error *err);
TC_INTERNAL void tc__map_close(tc__map *map);

/* A file written beside its destination and renamed over it by tc__replace_commit (after fsync), so
 * that `path` always holds either the old or the complete new bytes. tc__replace_abort removes the
 * temporary file; both close it. Only regular files are replaced; the new file has the permissions
 * of the old one, and a link stays and what it points to is replaced. Errors: IO. */
typedef struct tc__replace {
    FILE *file; /* write here; check ferror or rely on commit, which does */
    char *path, *temporary;
} tc__replace;

TC_INTERNAL int tc__replace_open(tc__replace *replace, const char *path, tc_error *err);
TC_INTERNAL int tc__replace_commit(tc__replace *replace, tc_error *err);
TC_INTERNAL void tc__replace_abort(tc__replace *replace);

#endif /* TC_BASE_H */
