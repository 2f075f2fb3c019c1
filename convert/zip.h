/* zip - the members of a zip archive as torch.save writes them: stored, not compressed, with the
 * zip64 records. Everything is taken from the central directory, since torch leaves the sizes in
 * the local headers zero, and every member is proved to lie inside the file, apart from the others.
 */
#ifndef CONVERT_ZIP_H
#define CONVERT_ZIP_H

#include "src/base.h"

#define ZIP_MAX_MEMBERS (1u << 20)

typedef struct zip_member {
    const char *name; /* in the file, not NUL-terminated */
    size_t name_len;
    const uint8_t *data; /* in the file, no particular alignment */
    size_t size;
    uint32_t crc; /* CRC-32 of the data; 0 if the writer did not compute it */
} zip_member;

typedef struct zip_archive {
    zip_member *members; /* [count] ascending by name */
    size_t count;
} zip_archive;

/* Whether the bytes begin as a zip archive does. */
bool zip_detect(const uint8_t *bytes, size_t size);

/* Reads the directory of a mapped archive; the data of the members is not looked at. `file` is only
 * for messages. Errors: FORMAT (damaged or cut short), UNSUPPORTED (compressed, encrypted, in
 * several volumes, more than ZIP_MAX_MEMBERS), MEMORY. On failure *zip is empty. */
int zip_open(const char *file, const uint8_t *bytes, size_t size, zip_archive *zip, tc_error *err);

void zip_close(zip_archive *zip);

/* The member with this name, NULL if there is none. */
const zip_member *zip_find(const zip_archive *zip, const char *name, size_t name_len);

#endif /* CONVERT_ZIP_H */
