/* The end of an archive, backwards: end record (22 bytes and a comment), before it the zip64
 * locator (20 bytes) that gives the offset of the zip64 end record (56 bytes), before that the
 * central directory. PKWARE's APPNOTE 6.3 is the specification. */
#include "src/base.h"

#include "zip.h"

enum {
    ZIP_LOCAL = 0x04034b50,
    ZIP_CENTRAL = 0x02014b50,
    ZIP_END = 0x06054b50,
    ZIP_END64 = 0x06064b50,
    ZIP_LOCATOR64 = 0x07064b50,
    ZIP_END_SIZE = 22,
    ZIP_LOCATOR64_SIZE = 20
};

/* Where the central directory is, from the end records. */
typedef struct zip_end {
    uint64_t disk, count, size, offset;
} zip_end;

typedef struct zip_reader {
    const char *file;
    const uint8_t *bytes;
    size_t size;
    zip_archive *zip;
    tc_error *err;
} zip_reader;

static uint32_t zip_u16(tc__cursor *cursor) {
    uint16_t value = 0;
    const uint8_t *bytes = tc__take(cursor, sizeof value);
    if (bytes) memcpy(&value, bytes, sizeof value);
    return value;
}

static int zip_fail(zip_reader *r, const char *what) {
    return tc__fail(r->err, TC_ERR_FORMAT, "%s: damaged zip archive: %s", r->file, what);
}

static int zip_fail_member(zip_reader *r, const zip_member *member, int code, const char *what) {
    return tc__fail(r->err, code, "%s: member '%.*s' %s", r->file,
                    (int)(member->name_len < 300 ? member->name_len : 300), member->name, what);
}

bool zip_detect(const uint8_t *bytes, size_t size) {
    return size >= 4 && !memcmp(bytes, "PK\3\4", 4);
}

/* The offset of the end record: the last place from which a record reaches exactly to the end. */
static bool zip_find_end(const zip_reader *r, size_t *at) {
    if (r->size < ZIP_END_SIZE) return false;
    size_t last = r->size - ZIP_END_SIZE, first = last > 0xFFFF ? last - 0xFFFF : 0;
    for (*at = last;; --*at) {
        tc__cursor cursor = tc__cursor_make(r->bytes + *at, r->size - *at);
        if (tc__take_u32(&cursor) == ZIP_END && tc__take(&cursor, 16) &&
            zip_u16(&cursor) == last - *at)
            return true;
        if (*at == first) return false;
    }
}

/* Reads the zip64 end record if there is one; *end keeps the classic values otherwise. Those must
 * say the same as the zip64 record unless they say "too large". */
static int zip_read_end64(zip_reader *r, size_t end_at, zip_end *end) {
    bool overflow = end->count == 0xFFFF || end->size == UINT32_MAX || end->offset == UINT32_MAX;
    tc__cursor locator = {NULL, NULL, true};
    if (end_at >= ZIP_LOCATOR64_SIZE)
        locator = tc__cursor_make(r->bytes + end_at - ZIP_LOCATOR64_SIZE, ZIP_LOCATOR64_SIZE);
    if (locator.failed || tc__take_u32(&locator) != ZIP_LOCATOR64)
        return overflow ? zip_fail(r, "its zip64 record is missing") : TC_OK;
    uint64_t disk = tc__take_u32(&locator), offset = tc__take_u64(&locator);
    if (tc__take_u32(&locator) > 1 || disk)
        return tc__fail(r->err, TC_ERR_UNSUPPORTED, "%s: one volume of a zip archive in several",
                        r->file);
    if (offset > end_at) return zip_fail(r, "its zip64 record lies outside");

    tc__cursor cursor = tc__cursor_make(r->bytes + offset, end_at - offset);
    bool found = tc__take_u32(&cursor) == ZIP_END64;
    tc__take(&cursor, 12); /* size of the record, versions */
    uint64_t disks = tc__take_u64(&cursor);
    zip_end large = {disks ? 1 : 0, tc__take_u64(&cursor), 0, 0};
    uint64_t total = tc__take_u64(&cursor);
    large.size = tc__take_u64(&cursor);
    large.offset = tc__take_u64(&cursor);
    if (!found || cursor.failed || total != large.count)
        return zip_fail(r, "its zip64 record makes no sense");
    if ((end->count != 0xFFFF && end->count != large.count) ||
        (end->size != UINT32_MAX && end->size != large.size) ||
        (end->offset != UINT32_MAX && end->offset != large.offset))
        return zip_fail(r, "its two end records contradict each other");
    *end = large;
    return TC_OK;
}

/* Finds the central directory and proves that it lies inside the file. */
static int zip_read_end(zip_reader *r, zip_end *end) {
    size_t at;
    if (!zip_find_end(r, &at))
        return tc__fail(r->err, TC_ERR_FORMAT,
                        "%s: incomplete zip archive: its directory, which comes last, is missing "
                        "(an interrupted download?)",
                        r->file);
    tc__cursor cursor = tc__cursor_make(r->bytes + at, ZIP_END_SIZE);
    tc__take_u32(&cursor);
    end->disk = zip_u16(&cursor) | zip_u16(&cursor);
    uint32_t here = zip_u16(&cursor);
    end->count = zip_u16(&cursor);
    end->size = tc__take_u32(&cursor);
    end->offset = tc__take_u32(&cursor);
    if (here != end->count) return zip_fail(r, "its end record makes no sense");
    int code = zip_read_end64(r, at, end);
    if (code) return code;
    if (end->disk && end->disk != 0xFFFF)
        return tc__fail(r->err, TC_ERR_UNSUPPORTED, "%s: one volume of a zip archive in several",
                        r->file);
    if (end->offset > at || end->size > at - end->offset)
        return zip_fail(r, "its directory lies outside");
    if (end->count > ZIP_MAX_MEMBERS)
        return tc__fail(r->err, TC_ERR_UNSUPPORTED,
                        "%s: a zip archive of %llu members, more than %u", r->file,
                        (unsigned long long)end->count, ZIP_MAX_MEMBERS);
    if (end->count > end->size / 46) return zip_fail(r, "its directory is too short");
    return TC_OK;
}

/* Replaces the sizes and the offset that do not fit into 32 bits by those of the zip64 extra
 * field, which holds only these. */
static bool zip_read_extra64(tc__cursor extra, uint64_t *size, uint64_t *stored, uint64_t *offset) {
    while (tc__cursor_left(&extra) >= 4) {
        uint32_t id = zip_u16(&extra);
        size_t len = zip_u16(&extra);
        const uint8_t *bytes = tc__take(&extra, len);
        if (!bytes) return false;
        if (id != 1) continue;
        tc__cursor field = tc__cursor_make(bytes, len);
        if (*size == UINT32_MAX) *size = tc__take_u64(&field);
        if (*stored == UINT32_MAX) *stored = tc__take_u64(&field);
        if (*offset == UINT32_MAX) *offset = tc__take_u64(&field);
        return !field.failed;
    }
    return *size != UINT32_MAX && *stored != UINT32_MAX && *offset != UINT32_MAX;
}

/* Finds the data of a member behind its local header, whose name and extra field have lengths of
 * their own. The data must end before `limit`, where the central directory begins. */
static int zip_locate(zip_reader *r, zip_member *member, uint64_t offset, uint64_t limit) {
    if (offset > limit) return zip_fail_member(r, member, TC_ERR_FORMAT, "lies outside the file");
    tc__cursor cursor = tc__cursor_make(r->bytes + offset, limit - offset);
    bool found = tc__take_u32(&cursor) == ZIP_LOCAL;
    tc__take(&cursor, 22);
    size_t name_len = zip_u16(&cursor), extra_len = zip_u16(&cursor);
    const uint8_t *name = tc__take(&cursor, name_len);
    tc__take(&cursor, extra_len);
    if (!found || cursor.failed || name_len != member->name_len ||
        memcmp(name, member->name, name_len))
        return zip_fail_member(r, member, TC_ERR_FORMAT,
                               "is not where the zip directory says: the file is damaged");
    member->data = tc__take(&cursor, member->size);
    if (cursor.failed)
        return zip_fail_member(r, member, TC_ERR_FORMAT, "reaches past the end of the file");
    return TC_OK;
}

static int zip_read_member(zip_reader *r, tc__cursor *directory, uint64_t limit,
                           zip_member *member) {
    bool found = tc__take_u32(directory) == ZIP_CENTRAL;
    tc__take(directory, 4); /* versions */
    uint32_t flags = zip_u16(directory), method = zip_u16(directory);
    tc__take(directory, 4); /* time */
    member->crc = tc__take_u32(directory);
    uint64_t stored = tc__take_u32(directory), size = tc__take_u32(directory);
    size_t name_len = zip_u16(directory), extra_len = zip_u16(directory);
    size_t comment_len = zip_u16(directory);
    tc__take(directory, 8); /* disk, attributes */
    uint64_t offset = tc__take_u32(directory);
    member->name = (const char *)tc__take(directory, name_len);
    member->name_len = name_len;
    const uint8_t *extra = tc__take(directory, extra_len);
    tc__take(directory, comment_len);
    if (!found || directory->failed) return zip_fail(r, "an entry of its directory makes no sense");
    if (!zip_read_extra64(tc__cursor_make(extra, extra_len), &size, &stored, &offset))
        return zip_fail_member(r, member, TC_ERR_FORMAT, "has a damaged zip64 field");
    if (flags & 1) return zip_fail_member(r, member, TC_ERR_UNSUPPORTED, "is encrypted");
    if (method)
        return zip_fail_member(r, member, TC_ERR_UNSUPPORTED,
                               "is compressed, which torch.save never does: unpack the archive");
    if (size != stored)
        return zip_fail_member(r, member, TC_ERR_FORMAT, "has two sizes: the file is damaged");
    if (size > limit) return zip_fail_member(r, member, TC_ERR_FORMAT, "is larger than the file");
    member->size = (size_t)size;
    return zip_locate(r, member, offset, limit);
}

static int zip_by_data(const void *a, const void *b) {
    const zip_member *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size;
}

static int zip_compare_names(const char *a, size_t a_len, const char *b, size_t b_len) {
    int order = memcmp(a, b, a_len < b_len ? a_len : b_len);
    return order ? order : a_len < b_len ? -1 : a_len > b_len;
}

static int zip_by_name(const void *a, const void *b) {
    const zip_member *x = a, *y = b;
    return zip_compare_names(x->name, x->name_len, y->name, y->name_len);
}

/* Leaves the members in order of their names. */
static int zip_check_apart(zip_reader *r) {
    zip_member *members = r->zip->members;
    size_t count = r->zip->count;
    qsort(members, count, sizeof *members, zip_by_data);
    for (size_t i = 1; i < count; i++)
        if (members[i - 1].size > (size_t)(members[i].data - members[i - 1].data))
            return zip_fail_member(r, &members[i], TC_ERR_FORMAT, "overlaps another member");
    qsort(members, count, sizeof *members, zip_by_name);
    for (size_t i = 1; i < count; i++)
        if (!zip_by_name(&members[i - 1], &members[i]))
            return zip_fail_member(r, &members[i], TC_ERR_FORMAT, "occurs twice");
    return TC_OK;
}

static int zip_read(zip_reader *r) {
    zip_end end = {0};
    int code = zip_read_end(r, &end);
    if (code) return code;
    zip_archive *zip = r->zip;
    zip->members = tc__calloc((size_t)end.count, sizeof *zip->members);
    if (!zip->members)
        return tc__fail_memory(r->err, r->file, (size_t)end.count * sizeof *zip->members);
    tc__cursor directory = tc__cursor_make(r->bytes + end.offset, (size_t)end.size);
    for (; zip->count < end.count; zip->count++) {
        code = zip_read_member(r, &directory, end.offset, &zip->members[zip->count]);
        if (code) return code;
    }
    if (tc__cursor_left(&directory)) return zip_fail(r, "its directory is too long");
    return zip_check_apart(r);
}

int zip_open(const char *file, const uint8_t *bytes, size_t size, zip_archive *zip, tc_error *err) {
    memset(zip, 0, sizeof *zip);
    zip_reader reader = {file, bytes, size, zip, err};
    int code = zip_read(&reader);
    if (!code) return tc__ok(err);
    zip_close(zip);
    return code;
}

void zip_close(zip_archive *zip) {
    free(zip->members);
    memset(zip, 0, sizeof *zip);
}

const zip_member *zip_find(const zip_archive *zip, const char *name, size_t name_len) {
    size_t first = 0, end = zip->count;
    while (first < end) {
        size_t middle = first + (end - first) / 2;
        const zip_member *member = &zip->members[middle];
        int order = zip_compare_names(name, name_len, member->name, member->name_len);
        if (!order) return member;
        if (order < 0)
            end = middle;
        else
            first = middle + 1;
    }
    return NULL;
}
