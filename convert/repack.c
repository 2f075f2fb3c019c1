#include "repack.h"

#include "src/model_file.h"

/* 16 blocks of packing A are 256 rows: 128 bytes of every column, two cache lines, and of both
 * parts of an interleaved matrix one. The other packings read row by row: a band that fits a core's
 * cache and is not too small a piece for the writer. */
#define REPACK_TOGETHER 16u
#define REPACK_BAND 4u

/* Rows of q, then k, then v out of groups of the query heads that share a key-value head, its key
 * and its value. */
static void repack_locate_grouped(const repack_matrix *m, uint32_t row, uint32_t *part_row,
                                  uint32_t *count) {
    uint32_t d = m->head_dim, head = row / d, queries = m->heads / m->kv_heads;
    uint32_t group = head / queries, at = head % queries;
    if (head >= m->heads) {
        group = (head - m->heads) % m->kv_heads;
        at = queries + (head - m->heads) / m->kv_heads;
    }
    *part_row = (group * (queries + 2) + at) * d + row % d;
    *count = d - row % d;
}

void repack_locate(const repack_matrix *m, uint32_t row, int *part, uint32_t *part_row,
                   uint32_t *count) {
    if (m->order == FAMILY_GROUPED) {
        *part = 0;
        repack_locate_grouped(m, row, part_row, count);
        return;
    }
    if (m->order == FAMILY_EIGHTS) {
        *part = row >> 3 & 1;
        *part_row = (row >> 4) * 8 + (row & 7);
        *count = 8 - (row & 7);
        return;
    }
    int p = 0;
    while (row >= m->parts[p].rows) row -= m->parts[p++].rows;
    *part = p;
    *part_row = row;
    *count = m->parts[p].rows - row;
}

uint32_t repack_band(const repack_matrix *m) {
    return layout_by_columns(m->parts[0].kind) ? 2 * REPACK_TOGETHER : REPACK_BAND;
}

static uint32_t repack_group(const repack_matrix *m) {
    return m->parts[0].group;
}

size_t repack_bytes(const repack_matrix *m, uint32_t blocks) {
    uint32_t group = repack_group(m);
    return (size_t)blocks * (m->columns / group) * TC__UNIT_BYTES(group);
}

/* The binary16 form of 0..15. */
static const uint16_t repack_zero[16] = {0x0000, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500,
                                         0x4600, 0x4700, 0x4800, 0x4880, 0x4900, 0x4980,
                                         0x4a00, 0x4a80, 0x4b00, 0x4b80};

/* Two neighbouring words of a lane: eight columns of a row (nibbles a0..a7, b the row 8 below) as
 * a0 b0 a2 b2 a1 b1 a3 b3 in the low word and a4 b4 a6 b6 a5 b5 a7 b7 in the high one. */
static inline uint64_t repack_pair(uint32_t a, uint32_t b) {
    uint64_t x = (a | (uint64_t)a << 16) & 0x0000ffff0000ffffu;
    uint64_t y = (b | (uint64_t)b << 16) & 0x0000ffff0000ffffu;
    x = (x & 0x00000f0f00000f0fu) | (x & 0x0000f0f00000f0f0u) << 12;
    y = (y & 0x00000f0f00000f0fu) | (y & 0x0000f0f00000f0f0u) << 12;
    return x | y << 4;
}

/* The numbers of one unit. Lane l = 4 r + c has columns 8 c..8 c+7 of every 32, of rows r, r+8. */
static void repack_numbers(const layout_words words[16], uint32_t group, uint8_t *out) {
    size_t lane_bytes = group == 32 ? 8 : 16;
    for (uint32_t r = 0; r < 8; r++)
        for (uint32_t t = 0; t < group / 32; t++) {
            uint8_t *at = out + (t >> 1) * 512 + 4 * r * lane_bytes + 8 * (t & 1);
            for (uint32_t c = 0; c < 4; c++, at += lane_bytes) {
                uint64_t pair = repack_pair(words[r][4 * t + c], words[r + 8][4 * t + c]);
                memcpy(at, &pair, sizeof pair);
            }
        }
}

/* Where the 16 rows of a block come from: runs of rows of one part. */
typedef struct repack_run {
    const layout_matrix *part;
    uint32_t row, count, at; /* rows row.. of the part are rows at.. of the block */
} repack_run;

static int repack_runs(const repack_matrix *m, uint32_t block, repack_run runs[16]) {
    int n = 0;
    for (uint32_t at = 0; at < 16 && 16 * block + at < m->rows; n++) {
        int part;
        runs[n].at = at;
        repack_locate(m, 16 * block + at, &part, &runs[n].row, &runs[n].count);
        runs[n].part = &m->parts[part];
        if (runs[n].count > 8 - (at & 7)) runs[n].count = 8 - (at & 7);
        at += runs[n].count;
    }
    return n;
}

/* Unit number `unit` of one row block: columns unit * group onwards. Rows that do not exist keep
 * scale, zero and numbers 0. */
static void repack_unit(const repack_run *runs, int run_count, uint32_t group, uint32_t unit,
                        uint8_t *out) {
    layout_words words[16];
    uint16_t scales[32] = {0};
    if (runs[run_count - 1].at + runs[run_count - 1].count < 16) memset(words, 0, sizeof words);
    for (int i = 0; i < run_count; i++) {
        const repack_run *run = &runs[i];
        const layout_matrix *part = run->part;
        layout_unpack(part, run->row, run->count, unit * group, group, &words[run->at]);
        size_t groups = part->columns / part->source_group;
        size_t at = run->row * groups + unit * group / part->source_group;
        for (uint32_t r = run->at; r < run->at + run->count; r++, at += groups) {
            scales[(r & 7) * 4 + (r >> 3) * 2] = part->s[at];
            scales[(r & 7) * 4 + (r >> 3) * 2 + 1] = repack_zero[part->z[at]];
        }
    }
    repack_numbers((const layout_words *)words, group, out);
    memcpy(out + 8 * group, scales, sizeof scales);
}

/* Packing A and GPTQ have the rows of a band side by side, so that they are read together, column
 * by column; the others have them far apart. */
void repack_blocks(const repack_matrix *m, uint32_t first, uint32_t blocks, uint32_t unit,
                   uint32_t count, uint8_t *out) {
    uint32_t group = repack_group(m), units = m->columns / group;
    uint32_t together = layout_by_columns(m->parts[0].kind) ? REPACK_TOGETHER : 1;
    size_t unit_bytes = TC__UNIT_BYTES(group);
    repack_run runs[REPACK_TOGETHER][16];
    int run_count[REPACK_TOGETHER];
    for (uint32_t done = 0; done < blocks; done += together) {
        uint32_t now = blocks - done < together ? blocks - done : together;
        for (uint32_t b = 0; b < now; b++) run_count[b] = repack_runs(m, first + done + b, runs[b]);
        for (uint32_t u = unit; u < unit + count; u++)
            for (uint32_t b = 0; b < now; b++)
                repack_unit(runs[b], run_count[b], group, u,
                            out + ((size_t)(done + b) * units + u) * unit_bytes);
    }
}
