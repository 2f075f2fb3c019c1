/* forge - writes checkpoint files byte by byte, good ones and bad ones: a pickle assembler and
 * writers of zip archives, legacy streams and safetensors files.
 *
 * The pickle assembler takes words separated by spaces:
 *     'text'        BINUNICODE (no spaces in it)
 *     17  -3        BININT; LONG1 if it does not fit into 32 bits
 *     @mod.name     GLOBAL (the last point divides)
 *     q5 r5 h5 j5   BINPUT LONG_BINPUT BINGET LONG_BINGET
 *     !             PROTO 2
 *     T F N         NEWTRUE NEWFALSE NONE
 *     t1 t2 t3      TUPLE1 TUPLE2 TUPLE3
 *     #9f           that byte
 *     tensor:KEY:Half:NUMEL:OFFSET:SHAPE:STRIDE   a whole tensor; SHAPE is like 2x3, or - for ()
 *     legacy:...    the same with the persistent id of legacy streams
 *     any other single character: itself, so ( } ) ] t u s a e Q R b . are their opcodes
 */
#ifndef TEST_FORGE_H
#define TEST_FORGE_H

#include "src/base.h"

static inline void forge_byte(tc__buf *out, unsigned byte) {
    uint8_t value = (uint8_t)byte;
    tc__buf_add(out, &value, 1);
}

static inline void forge_u16(tc__buf *out, unsigned value) {
    forge_byte(out, value & 255);
    forge_byte(out, value >> 8 & 255);
}

static inline void forge_u32(tc__buf *out, uint32_t value) {
    tc__buf_add(out, &value, 4);
}

static inline void forge_u64(tc__buf *out, uint64_t value) {
    tc__buf_add(out, &value, 8);
}

static inline void forge_append(tc__buf *out, const tc__buf *more) {
    tc__buf_add(out, more->data, more->len);
}

/* ---- pickles ---- */

static inline void forge_string(tc__buf *out, const char *text, size_t len) {
    forge_byte(out, 'X');
    forge_u32(out, (uint32_t)len);
    tc__buf_add(out, text, len);
}

static inline void forge_int(tc__buf *out, int64_t value) {
    bool small = value >= INT32_MIN && value <= INT32_MAX;
    forge_byte(out, small ? 'J' : 0x8A);
    if (!small) forge_byte(out, 8);
    tc__buf_add(out, &value, small ? 4 : 8);
}

static inline void forge_pickle(tc__buf *out, const char *words);

/* A tuple of the numbers in "2x3x4", "-" for none. */
static inline void forge_dims(tc__buf *out, const char *text) {
    forge_byte(out, '(');
    while (*text && strcmp(text, "-")) {
        char *end;
        forge_int(out, strtoll(text, &end, 10));
        text = *end ? end + 1 : end;
    }
    forge_byte(out, 't');
}

/* "KEY:Half:NUMEL:OFFSET:SHAPE:STRIDE" */
static inline void forge_tensor(tc__buf *out, const char *word, bool legacy) {
    char text[600], *part[6] = {text};
    snprintf(text, sizeof text, "%s", word);
    for (int i = 1; i < 6; i++) {
        part[i] = strchr(part[i - 1], ':');
        if (!part[i]) abort(); /* a mistake in the test itself */
        *part[i]++ = 0;
    }
    forge_pickle(out, "@torch._utils._rebuild_tensor_v2 ( ( 'storage'");
    tc__buf_str(out, "ctorch\n");
    tc__buf_str(out, part[1]);
    tc__buf_str(out, "Storage\n");
    forge_string(out, part[0], strlen(part[0]));
    forge_pickle(out, "'cuda:0'");
    forge_int(out, strtoll(part[2], NULL, 10));
    forge_pickle(out, legacy ? "N t Q" : "t Q");
    forge_int(out, strtoll(part[3], NULL, 10));
    forge_dims(out, part[4]);
    forge_dims(out, part[5]);
    forge_pickle(out, "F @collections.OrderedDict ) R t R");
}

static inline void forge_word(tc__buf *out, const char *word, size_t len) {
    char text[600];
    if (len >= sizeof text) abort();
    memcpy(text, word, len);
    text[len] = 0;
    if (text[0] == '\'') {
        forge_string(out, text + 1, len - 2);
    } else if (text[0] == '@') {
        char *point = strrchr(text, '.');
        *point = 0;
        tc__buf_printf(out, "c%s\n%s\n", text + 1, point + 1);
    } else if (!strncmp(text, "tensor:", 7) || !strncmp(text, "legacy:", 7)) {
        forge_tensor(out, text + 7, text[0] == 'l');
    } else if (text[0] == '#') {
        forge_byte(out, (unsigned)strtoul(text + 1, NULL, 16));
    } else if ((text[0] >= '0' && text[0] <= '9') || (text[0] == '-' && len > 1)) {
        forge_int(out, strtoll(text, NULL, 10));
    } else if (len == 2 && text[0] == 't') {
        forge_byte(out, 0x84u + (unsigned)(text[1] - '0'));
    } else if (len > 1 && strchr("qrhj", text[0])) {
        bool wide = text[0] == 'r' || text[0] == 'j';
        uint32_t index = (uint32_t)strtoul(text + 1, NULL, 10);
        forge_byte(out, (unsigned char)text[0]);
        tc__buf_add(out, &index, wide ? 4 : 1);
    } else if (len != 1) {
        abort();
    } else if (text[0] == '!') {
        tc__buf_add(out, "\x80\x02", 2);
    } else if (text[0] == 'T' || text[0] == 'F') {
        forge_byte(out, text[0] == 'T' ? 0x88 : 0x89);
    } else {
        forge_byte(out, (unsigned char)text[0]);
    }
}

static inline void forge_pickle(tc__buf *out, const char *words) {
    while (*words) {
        size_t len = strcspn(words, " ");
        if (len) forge_word(out, words, len);
        words += len + (words[len] == ' ');
    }
}

/* ---- zip ---- */

/* What to do otherwise than torch.save does. */
typedef struct forge_options {
    bool no_zip64;    /* leave out the zip64 end record */
    bool extra64;     /* 0xFFFFFFFF in the directory, the values in zip64 fields */
    bool local_sizes; /* sizes in the local headers instead of behind the data */
    bool zero_crc;    /* the writer did not compute checksums */
    bool wrong_crc;
    unsigned method;     /* 8: says that the data is compressed */
    unsigned flags;      /* 1: says that it is encrypted */
    const char *comment; /* at the end of the archive */
} forge_options;

typedef struct forge_zip {
    tc__buf bytes, directory;
    unsigned count;
    forge_options options;
} forge_zip;

static inline void forge_zip_add(forge_zip *zip, const char *name, const void *data, size_t size) {
    const forge_options *o = &zip->options;
    uint32_t crc = o->zero_crc ? 0 : tc__crc32(0, data, size) ^ (o->wrong_crc ? 0x40 : 0);
    uint32_t length = (uint32_t)size, local = (uint32_t)zip->bytes.len;
    size_t name_len = strlen(name), padding = 64 - (local + 30 + name_len + 4) % 64;

    forge_u32(&zip->bytes, 0x04034b50);
    forge_u16(&zip->bytes, 0);
    forge_u16(&zip->bytes, o->flags | (o->local_sizes ? 0x0800 : 0x0808));
    forge_u16(&zip->bytes, o->method);
    forge_u32(&zip->bytes, 0);
    forge_u32(&zip->bytes, o->local_sizes ? crc : 0);
    forge_u32(&zip->bytes, o->local_sizes ? length : 0);
    forge_u32(&zip->bytes, o->local_sizes ? length : 0);
    forge_u16(&zip->bytes, (unsigned)name_len);
    forge_u16(&zip->bytes, (unsigned)(padding + 4));
    tc__buf_str(&zip->bytes, name);
    tc__buf_add(&zip->bytes, "FB", 2);
    forge_u16(&zip->bytes, (unsigned)padding);
    for (size_t i = 0; i < padding; i++) forge_byte(&zip->bytes, 'Z');
    tc__buf_add(&zip->bytes, data, size);
    if (!o->local_sizes) {
        forge_u32(&zip->bytes, 0x08074b50);
        forge_u32(&zip->bytes, crc);
        forge_u32(&zip->bytes, length);
        forge_u32(&zip->bytes, length);
    }

    tc__buf *d = &zip->directory;
    forge_u32(d, 0x02014b50);
    forge_u32(d, 0);
    forge_u16(d, o->flags | 0x0808);
    forge_u16(d, o->method);
    forge_u32(d, 0);
    forge_u32(d, crc);
    forge_u32(d, o->extra64 ? UINT32_MAX : length);
    forge_u32(d, o->extra64 ? UINT32_MAX : length);
    forge_u16(d, (unsigned)name_len);
    forge_u16(d, o->extra64 ? 28 : 0);
    forge_u16(d, 0);
    forge_u32(d, 0);
    forge_u32(d, 0);
    forge_u32(d, o->extra64 ? UINT32_MAX : local);
    tc__buf_str(d, name);
    if (o->extra64) {
        forge_u16(d, 1);
        forge_u16(d, 24);
        forge_u64(d, size);
        forge_u64(d, size);
        forge_u64(d, local);
    }
    zip->count++;
}

/* Ends the archive; its bytes are in zip->bytes. */
static inline void forge_zip_end(forge_zip *zip) {
    const forge_options *o = &zip->options;
    tc__buf *out = &zip->bytes;
    size_t start = out->len, size = zip->directory.len;
    const char *comment = o->comment ? o->comment : "";
    forge_append(out, &zip->directory);
    if (!o->no_zip64) {
        size_t record = out->len;
        forge_u32(out, 0x06064b50);
        forge_u64(out, 44);
        forge_u32(out, 0);
        forge_u64(out, 0);
        forge_u64(out, zip->count);
        forge_u64(out, zip->count);
        forge_u64(out, size);
        forge_u64(out, start);
        forge_u32(out, 0x07064b50);
        forge_u32(out, 0);
        forge_u64(out, record);
        forge_u32(out, 1);
    }
    bool large = o->extra64;
    forge_u32(out, 0x06054b50);
    forge_u32(out, 0);
    forge_u16(out, large ? 0xFFFF : zip->count);
    forge_u16(out, large ? 0xFFFF : zip->count);
    forge_u32(out, large ? UINT32_MAX : (uint32_t)size);
    forge_u32(out, large ? UINT32_MAX : (uint32_t)start);
    forge_u16(out, (unsigned)strlen(comment));
    tc__buf_str(out, comment);
    tc__buf_free(&zip->directory);
}

/* A torch zip file: the pickle, then storages "0", "1"... with these bytes (NULL-terminated list of
 * strings, so without zeros). Free zip.bytes. */
static inline forge_zip forge_torch(const char *pickle, const char *const *storages,
                                    forge_options options) {
    forge_zip zip = {.options = options};
    tc__buf text = {0};
    forge_pickle(&text, pickle);
    forge_zip_add(&zip, "archive/data.pkl", text.data, text.len);
    forge_zip_add(&zip, "archive/byteorder", "little", 6);
    for (int i = 0; storages[i]; i++) {
        char name[32];
        snprintf(name, sizeof name, "archive/data/%d", i);
        forge_zip_add(&zip, name, storages[i], strlen(storages[i]));
    }
    forge_zip_add(&zip, "archive/version", "3\n", 2);
    forge_zip_end(&zip);
    tc__buf_free(&text);
    return zip;
}

/* ---- legacy ---- */

/* The three pickles that a legacy stream begins with. */
static inline void forge_legacy_head(tc__buf *out, bool little_endian) {
    tc__buf_add(out, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
    forge_pickle(out, "! 1001 .");
    forge_pickle(out, "! } ( 'protocol_version' 1001 'little_endian'");
    forge_pickle(out, little_endian ? "T" : "F");
    forge_pickle(out, "'type_sizes' } ( 'short' 2 'int' 4 'long' 4 u u .");
}

/* A storage of a legacy stream. */
static inline void forge_legacy_storage(tc__buf *out, uint64_t count, const void *data,
                                        size_t size) {
    forge_u64(out, count);
    tc__buf_add(out, data, size);
}

/* ---- safetensors ---- */

static inline void forge_safetensors(tc__buf *out, const char *header, const void *data,
                                     size_t size) {
    forge_u64(out, strlen(header));
    tc__buf_str(out, header);
    tc__buf_add(out, data, size);
}

#endif /* TEST_FORGE_H */
