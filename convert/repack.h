/* repack - linear layers to the model file's W4 units (docs/format.md): the converter's hot loop.
 */
#ifndef CONVERT_REPACK_H
#define CONVERT_REPACK_H

#include "families.h"
#include "layout.h"

#define REPACK_MAX_PARTS FAMILY_MAX_PARTS

/* A matrix of the model file and the layers that it is joined of. */
typedef struct repack_matrix {
    layout_matrix parts[REPACK_MAX_PARTS];
    int part_count;
    family_order order;                 /* of the parts' rows */
    uint32_t heads, kv_heads, head_dim; /* with FAMILY_GROUPED */
    uint32_t rows, columns;
} repack_matrix;

/* Where rows of the joined matrix come from: the *count rows from `row` on are the rows *part_row,
 * *part_row + 1... of parts[*part], and the row behind them is none of those. */
void repack_locate(const repack_matrix *m, uint32_t row, int *part, uint32_t *part_row,
                   uint32_t *count);

/* Row blocks (of 16) that are best repacked in one call: packing A keeps neighbouring rows in one
 * cache line. And the bytes that a number of blocks takes. */
uint32_t repack_band(const repack_matrix *m);
size_t repack_bytes(const repack_matrix *m, uint32_t blocks);

/* Writes units `unit` .. unit + count - 1 of each of the row blocks first .. first + blocks - 1 to
 * their places in out[repack_bytes(m, blocks)]. The parts are open, packed, and of one
 * group size. */
void repack_blocks(const repack_matrix *m, uint32_t first, uint32_t blocks, uint32_t unit,
                   uint32_t count, uint8_t *out);

#endif /* CONVERT_REPACK_H */
