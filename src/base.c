#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- errors ---- */

/* The bytes of the first character if it moves the cursor or reorders text on a terminal, else 0:
 * of all controls and the bidirectional embeddings, overrides and isolates. */
static size_t base_hostile(const char *text) {
    const unsigned char *c = (const unsigned char *)text;
    if (c[0] < 0x20 || c[0] == 0x7f) return 1;
    if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f) return 2;
    if (c[0] == 0xe2 && c[1] == 0x80 && c[2] >= 0xaa && c[2] <= 0xae) return 3;
    if (c[0] == 0xe2 && c[1] == 0x81 && c[2] >= 0xa6 && c[2] <= 0xa9) return 3;
    return 0;
}

int tc__fail(tc_error *err, int code, const char *format, ...) {
    if (!err) return code;
    err->code = code;
    va_list args;
    va_start(args, format);
    if (vsnprintf(err->message, sizeof err->message, format, args) < 0) err->message[0] = 0;
    va_end(args);
    char *end = err->message;
    for (const char *c = err->message; *c; end++) {
        size_t hostile = base_hostile(c);
        *end = hostile ? '?' : *c;
        c += hostile ? hostile : 1;
    }
    *end = 0;
    return code;
}

int tc__fail_memory(tc_error *err, const char *what, size_t bytes) {
    return tc__fail(err, TC_ERR_MEMORY, "out of memory: %s needs %zu bytes", what, bytes);
}

int tc__need(bool given, const char *name, tc_error *err) {
    return given ? TC_OK : tc__fail(err, TC_ERR_ARGUMENT, "%s is NULL", name);
}

int tc__ok(tc_error *err) {
    if (err) {
        err->code = TC_OK;
        err->message[0] = 0;
    }
    return TC_OK;
}

/* ---- memory ---- */

bool tc__mul(size_t a, size_t b, size_t *result) {
    if (b && a > SIZE_MAX / b) return false;
    *result = a * b;
    return true;
}

bool tc__add(size_t a, size_t b, size_t *result) {
    if (a > SIZE_MAX - b) return false;
    *result = a + b;
    return true;
}

void *tc__calloc(size_t count, size_t size) {
    size_t bytes;
    if (!tc__mul(count, size, &bytes)) return NULL;
    return calloc(1, bytes ? bytes : 1);
}

void *tc__alloc_aligned(size_t bytes) {
    void *memory;
    if (bytes > SIZE_MAX - 64) return NULL;
    bytes = (bytes + 64) & ~(size_t)63; /* never 0 */
    if (posix_memalign(&memory, 64, bytes)) return NULL;
    memset(memory, 0, bytes);
    return memory;
}

void tc__free_aligned(void *memory) {
    free(memory);
}

/* The n numbers, one or two, behind `key` in one of the files that control groups have: all that it
 * says for "". False if there are none ("max"). */
static bool base_group_numbers(const char *group, const char *name, const char *key,
                               unsigned long long *numbers, int n) {
    char line[4096 + 64];
    const size_t len = strlen(key);
    bool found = false;
    snprintf(line, sizeof line, "%s/%s", group, name);
    FILE *file = fopen(line, "r");
    if (!file) return false;
    while (!found && fgets(line, sizeof line, file))
        found = strncmp(line, key, len) == 0 &&
                sscanf(line + len, n == 2 ? "%llu %llu" : "%llu", numbers, numbers + n - 1) == n;
    fclose(file);
    return found;
}

/* What one group leaves: its limit, less what is used and not cached files. */
static size_t base_group_room(const char *group, bool unified) {
    static const char *const stats[2][2] = {{"total_active_file ", "total_inactive_file "},
                                            {"active_file ", "inactive_file "}};
    unsigned long long limit, used, cached = 0, n;
    if (!base_group_numbers(group, unified ? "memory.max" : "memory.limit_in_bytes", "", &limit,
                            1) ||
        !base_group_numbers(group, unified ? "memory.current" : "memory.usage_in_bytes", "", &used,
                            1))
        return SIZE_MAX;
    for (int i = 0; i < 2; i++)
        if (base_group_numbers(group, "memory.stat", stats[unified][i], &n, 1)) cached += n;
    used -= cached < used ? cached : used;
    limit -= used < limit ? used : limit;
    return limit < SIZE_MAX ? (size_t)limit : SIZE_MAX;
}

/* How many processors a group may keep busy. A team whose members wait for each other gains nothing
 * from a part of one. */
static size_t base_group_processors(const char *group, bool unified) {
    unsigned long long of[2]; /* microseconds in every so many */
    const bool limited = unified ? base_group_numbers(group, "cpu.max", "", of, 2)
                                 : base_group_numbers(group, "cpu.cfs_quota_us", "", of, 1) &&
                                       base_group_numbers(group, "cpu.cfs_period_us", "", of + 1, 1);
    if (!limited || !of[1] || of[0] > LLONG_MAX) return SIZE_MAX; /* -1: none */
    return of[0] < of[1] ? 1 : (size_t)(of[0] / of[1]);
}

/* Whether a name is among those of a list with commas. */
static bool base_is_listed(const char *list, const char *name) {
    const size_t len = strlen(name);
    while (*list) {
        const size_t next = strcspn(list, ",");
        if (next == len && !strncmp(list, name, len)) return true;
        list += next + (list[next] == ',');
    }
    return false;
}

/* The least of what `limit` says of the groups of a controller. */
static size_t base_least(const char *groups, const char *root, const char *controller,
                         size_t (*limit)(const char *group, bool unified)) {
    char line[4096], path[sizeof line + 512];
    size_t least = SIZE_MAX;
    FILE *file = fopen(groups, "r");
    while (file && fgets(line, sizeof line, file)) { /* "4:memory:/a/b", of version 2 "0::/a/b" */
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        const bool unified = names[1] == 0;
        if (!unified && !base_is_listed(names + 1, controller)) continue;
        for (char *end = group + strlen(group); end; end = strrchr(group, '/')) {
            *end = 0; /* the group, and those around it */
            snprintf(path, sizeof path, "%.500s%s%s%s", root, unified ? "" : "/",
                     unified ? "" : controller, group);
            const size_t most = limit(path, unified);
            if (most < least) least = most;
        }
    }
    if (file) fclose(file);
    return least;
}

size_t tc__group_memory(const char *groups, const char *root) {
    return base_least(groups, root, "memory", base_group_room);
}

size_t tc__group_processors(const char *groups, const char *root) {
    return base_least(groups, root, "cpu", base_group_processors);
}

size_t tc__allowed_processors(const char *status) {
    char line[4096];
    size_t count = 0;
    FILE *file = fopen(status, "r");
    while (file && !count && fgets(line, sizeof line, file)) {
        if (strncmp(line, "Cpus_allowed:", 13)) continue;
        for (const char *c = line + 13; *c; c++) { /* words of hexadecimal digits with commas */
            static const char digits[] = "0123456789abcdef";
            const char *digit = strchr(digits, *c);
            for (ptrdiff_t bits = digit ? digit - digits : 0; bits; bits &= bits - 1) count++;
        }
    }
    if (file) fclose(file);
    return count ? count : SIZE_MAX;
}

size_t tc__available_memory(void) {
    unsigned long long bytes = 0, kib;
    FILE *file = fopen("/proc/meminfo", "r");
    if (file) {
        char line[128];
        while (!bytes && fgets(line, sizeof line, file))
            if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) bytes = kib * 1024;
        fclose(file);
    }
#ifdef _SC_PHYS_PAGES
    if (!bytes) {
        long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
        if (pages > 0 && size > 0) bytes = (unsigned long long)pages * (unsigned long)size;
    }
#endif
    const size_t room = tc__group_memory("/proc/self/cgroup", "/sys/fs/cgroup");
    return bytes < room ? (size_t)bytes : room;
}

/* Makes room for `more` elements of `size` bytes after `len`; returns the new block or NULL. */
static void *base_grow(void *data, size_t *cap, size_t len, size_t more, size_t size) {
    size_t need, bytes;
    if (!tc__add(len, more, &need)) return NULL;
    if (need <= *cap) return data;
    size_t larger = need < 64 ? 64 : need + need / 2;
    if (larger < need || !tc__mul(larger, size, &bytes)) return NULL;
    void *moved = realloc(data, bytes);
    if (moved) *cap = larger;
    return moved;
}

void tc__buf_add(tc__buf *buf, const void *bytes, size_t len) {
    if (buf->failed) return;
    char *data = len < SIZE_MAX ? base_grow(buf->data, &buf->cap, buf->len, len + 1, 1) : NULL;
    if (!data) {
        buf->failed = true;
        return;
    }
    buf->data = data;
    if (len) memcpy(data + buf->len, bytes, len);
    buf->len += len;
    data[buf->len] = 0;
}

void tc__buf_str(tc__buf *buf, const char *text) {
    tc__buf_add(buf, text, strlen(text));
}

void tc__buf_printf(tc__buf *buf, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (len < 0 || (size_t)len >= sizeof text) /* longer texts are appended in pieces */
        buf->failed = true;
    else
        tc__buf_add(buf, text, (size_t)len);
}

void tc__buf_free(tc__buf *buf) {
    free(buf->data);
    memset(buf, 0, sizeof *buf);
}

void tc__ids_add(tc__ids *ids, const int32_t *more, size_t n) {
    if (ids->failed || !n) return;
    int32_t *data = base_grow(ids->data, &ids->cap, ids->len, n, sizeof *data);
    if (!data) {
        ids->failed = true;
        return;
    }
    ids->data = data;
    memcpy(data + ids->len, more, n * sizeof *data);
    ids->len += n;
}

void tc__ids_push(tc__ids *ids, int32_t id) {
    tc__ids_add(ids, &id, 1);
}

void tc__ids_free(tc__ids *ids) {
    free(ids->data);
    memset(ids, 0, sizeof *ids);
}

char *tc__copy(const char *text, size_t len) {
    if (len == SIZE_MAX) return NULL;
    char *copy = malloc(len + 1);
    if (!copy) return NULL;
    if (len) memcpy(copy, text, len);
    copy[len] = 0;
    return copy;
}

/* ---- bytes ---- */

tc__cursor tc__cursor_make(const void *bytes, size_t len) {
    tc__cursor cursor = {bytes, bytes, false};
    if (len) cursor.end += len;
    return cursor;
}

size_t tc__cursor_left(const tc__cursor *cursor) {
    return (size_t)(cursor->end - cursor->at);
}

const uint8_t *tc__take(tc__cursor *cursor, size_t len) {
    if (tc__cursor_left(cursor) < len) {
        cursor->failed = true;
        cursor->at = cursor->end;
        return NULL;
    }
    const uint8_t *bytes = cursor->at;
    if (len) cursor->at += len;
    return bytes;
}

uint32_t tc__take_u32(tc__cursor *cursor) {
    uint32_t value = 0;
    const uint8_t *bytes = tc__take(cursor, sizeof value);
    if (bytes) memcpy(&value, bytes, sizeof value);
    return value;
}

uint64_t tc__take_u64(tc__cursor *cursor) {
    uint64_t value = 0;
    const uint8_t *bytes = tc__take(cursor, sizeof value);
    if (bytes) memcpy(&value, bytes, sizeof value);
    return value;
}

/* Table t gives the CRC of a byte followed by t zero bytes ("slicing by 16"). Built on the caller's
 * stack (16 KB, about 4 us) because the library has no global state. */
static void base_crc_tables(uint32_t table[16][256]) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1)));
        table[0][i] = crc;
    }
    for (int t = 1; t < 16; t++)
        for (int i = 0; i < 256; i++)
            table[t][i] = (table[t - 1][i] >> 8) ^ table[0][table[t - 1][i] & 255];
}

uint32_t tc__crc32(uint32_t crc, const void *bytes, size_t len) {
    const uint8_t *p = bytes;
    crc = ~crc;
    if (len < 512) { /* not worth the tables */
        for (; len; len--) {
            crc ^= *p++;
            for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1)));
        }
        return ~crc;
    }
    uint32_t table[16][256];
    base_crc_tables(table);
    for (; len >= 16; len -= 16, p += 16) {
        uint32_t w[4];
        memcpy(w, p, 16);
        w[0] ^= crc;
        crc = 0;
        for (int i = 0; i < 4; i++)
            crc ^= table[15 - 4 * i][w[i] & 255] ^ table[14 - 4 * i][w[i] >> 8 & 255] ^
                   table[13 - 4 * i][w[i] >> 16 & 255] ^ table[12 - 4 * i][w[i] >> 24];
    }
    for (; len; len--) crc = (crc >> 8) ^ table[0][(crc ^ *p++) & 255];
    return ~crc;
}

size_t tc__utf8_decode(const char *s, size_t len, uint32_t *code) {
    const uint8_t *p = (const uint8_t *)s;
    size_t need = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    *code = UINT32_MAX;
    if (need == 0 || need > len || p[0] > 0xF4) return 1;
    if (need == 1) {
        *code = p[0];
        return 1;
    }
    uint32_t value = p[0] & (0x7Fu >> need);
    for (size_t i = 1; i < need; i++) {
        if ((p[i] & 0xC0) != 0x80) return 1;
        value = value << 6 | (p[i] & 0x3F);
    }
    bool overlong = value < (need == 2 ? 0x80u : need == 3 ? 0x800u : 0x10000u);
    if (overlong || (value >= 0xD800 && value < 0xE000) || value > 0x10FFFF) return 1;
    *code = value;
    return need;
}

bool tc__utf8_unfinished(const char *s, size_t len) {
    uint8_t first = (uint8_t)s[0], low = 0x80, high = 0xBF; /* of the second byte */
    size_t need = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (len >= need) return false;
    if (first == 0xE0) low = 0xA0;  /* below: overlong */
    if (first == 0xED) high = 0x9F; /* above: surrogates */
    if (first == 0xF0) low = 0x90;  /* below: overlong */
    if (first == 0xF4) high = 0x8F; /* above: beyond U+10FFFF */
    for (size_t i = 1; i < len; i++, low = 0x80, high = 0xBF)
        if ((uint8_t)s[i] < low || (uint8_t)s[i] > high) return false;
    return true;
}

size_t tc__utf8_encode(uint32_t code, char out[4]) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xF0) | code);
    return n;
}

/* ---- flags between threads ---- */

void tc__flag_set(tc__flag *flag, bool raised) {
    __atomic_store_n(&flag->raised, raised ? 1 : 0, __ATOMIC_RELEASE);
}

bool tc__flag_get(const tc__flag *flag) {
    return __atomic_load_n(&flag->raised, __ATOMIC_ACQUIRE) != 0;
}

/* ---- half precision ---- */

static float base_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float tc__f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7FFF;
    if (magnitude >= 0x7C00)
        return base_float_of_bits(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    if (magnitude >= 0x0400) return base_float_of_bits(sign | (magnitude + (112u << 10)) << 13);
    float value = (float)magnitude * 0x1p-24f; /* subnormal */
    return sign ? -value : value;
}

uint16_t tc__f32_to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return sign | 0x7E00;           /* NaN */
    if (bits >= 0x477FF000) return sign | 0x7C00;          /* rounds to 2^16 or more */
    if (bits < 0x38800000) {                               /* below 2^-14: a multiple of 2^-24 */
        float magnitude = base_float_of_bits(bits) + 0.5f; /* the addition rounds to even */
        memcpy(&bits, &magnitude, sizeof bits);
        return sign | (uint16_t)(bits - 0x3F000000);
    }
    bits += 0xFFF + (bits >> 13 & 1);
    return sign | (uint16_t)((bits >> 13) - (112u << 10));
}

float tc__bf16_to_f32(uint16_t bf16) {
    return base_float_of_bits((uint32_t)bf16 << 16);
}

/* ---- files ---- */

int tc__map_open_fd(const char *path, tc__map *map, int *kept, tc_error *err) {
    memset(map, 0, sizeof *map);
    *kept = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block here */
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        int reason = errno;
        if (fd >= 0) close(fd);
        return tc__fail(err, TC_ERR_IO, "%s: cannot open: %s", path, strerror(reason));
    }
    void *data = NULL;
    int code = TC_OK;
    if (!S_ISREG(st.st_mode))
        code = tc__fail(err, TC_ERR_IO, "%s: is %s; expected a file", path,
                        S_ISDIR(st.st_mode) ? "a folder" : "not a regular file");
    else if ((uintmax_t)st.st_size > SIZE_MAX)
        code = tc__fail(err, TC_ERR_IO, "%s: too large for this machine's addresses", path);
    else if (st.st_size &&
             (data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        code = tc__fail(err, TC_ERR_IO, "%s: cannot map: %s", path, strerror(errno));
    if (code || !st.st_size) close(fd);
    if (code) return code;
    if (st.st_size) *kept = fd;
    map->data = data;
    map->size = (size_t)st.st_size;
    return tc__ok(err);
}

int tc__map_open(const char *path, tc__map *map, tc_error *err) {
    int fd, code = tc__map_open_fd(path, map, &fd, err);
    if (fd >= 0) close(fd);
    return code;
}

void tc__map_close(tc__map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    memset(map, 0, sizeof *map);
}

/* What is replaced: `path`, or what a link there points to; but not by a link of somebody else's,
 * who must not choose which of our files is written. malloc'ed. */
static char *base_replaced(const char *path) {
    struct stat link;
    bool ours = lstat(path, &link) == 0 && S_ISLNK(link.st_mode) && link.st_uid == geteuid();
    char *target = ours ? realpath(path, NULL) : NULL;
    return target ? target : tc__copy(path, strlen(path));
}

/* Creates a file that did not exist, beside the one to replace; leaves its name in
 * replace->temporary, which has `room` bytes. */
static int base_create_beside(tc__replace *replace, size_t room, mode_t mode) {
    for (int attempt = 0; attempt < 100; attempt++) {
        snprintf(replace->temporary, room, "%s.tmp-%ld-%d", replace->path, (long)getpid(), attempt);
        int fd = open(replace->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
    return -1;
}

int tc__replace_open(tc__replace *replace, const char *path, tc_error *err) {
    memset(replace, 0, sizeof *replace);
    struct stat info; /* root could rename over /dev/null, for everyone */
    const bool there = stat(path, &info) == 0;
    if (there && !S_ISREG(info.st_mode))
        return tc__fail(err, TC_ERR_IO, "%s: is not a regular file, so it is not replaced", path);
    replace->path = base_replaced(path);
    size_t room = (replace->path ? strlen(replace->path) : 0) + 48;
    replace->temporary = malloc(room);
    if (!replace->path || !replace->temporary) {
        free(replace->path);
        free(replace->temporary);
        memset(replace, 0, sizeof *replace);
        return tc__fail_memory(err, "a file name", room);
    }
    /* as private as what it replaces, from the first byte on */
    const mode_t mode = there ? info.st_mode & 0777 : 0666;
    int fd = base_create_beside(replace, room, mode);
    if (fd >= 0 && there) (void)!fchmod(fd, mode); /* what umask took away */
    if (fd >= 0) replace->file = fdopen(fd, "wb");
    if (replace->file) return tc__ok(err);
    tc__fail(err, TC_ERR_IO, "%s: cannot create a file beside it: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    else
        replace->temporary[0] = 0; /* not ours: nothing to remove */
    tc__replace_abort(replace);
    return TC_ERR_IO;
}

int tc__replace_commit(tc__replace *replace, tc_error *err) {
    errno = 0;
    bool good =
        fflush(replace->file) == 0 && !ferror(replace->file) && fsync(fileno(replace->file)) == 0;
    int reason = errno;
    if (fclose(replace->file) && good) good = false, reason = errno;
    replace->file = NULL;
    if (good && rename(replace->temporary, replace->path)) good = false, reason = errno;
    int code = good ? tc__ok(err)
                    : tc__fail(err, TC_ERR_IO, "%s: cannot write: %s", replace->path,
                               reason ? strerror(reason) : "unknown reason");
    if (good) replace->temporary[0] = 0; /* nothing left to remove */
    tc__replace_abort(replace);
    return code;
}

void tc__replace_abort(tc__replace *replace) {
    if (replace->file) fclose(replace->file);
    if (replace->temporary && replace->temporary[0]) unlink(replace->temporary);
    free(replace->temporary);
    free(replace->path);
    memset(replace, 0, sizeof *replace);
}
