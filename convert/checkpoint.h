/* checkpoint - one view of every kind of checkpoint file: named tensors in mapped files.
 *
 * What it reads (found out from the bytes, never from a file's extension):
 *   torch zip      .pt / .bin as torch.save has written since 1.6
 *   torch legacy   the stream of pickles that torch.save wrote before
 *   safetensors
 *   split folder   DIR/<key>.pt, one tensor each, as llm-awq's split_ckpt.py writes it
 *   Hugging Face   a folder with one of these files, or shards and their index
 *   AWQ search     {"scale": [...], "clip": [...]}, by ckpt_open_any only: these are no weights
 *
 * Nothing in a file is executed and nothing in it is trusted: every offset, size and stride is
 * proved to lie inside the file before a tensor is handed out. The data itself is not looked at
 * when opening, so that a 140 GB checkpoint opens at once; the checksum that a zip file has for a
 * tensor's data is compared when the data is about to be used (ckpt_check_crc).
 *
 * Memory: files are mapped, names and tables take some hundred bytes per tensor. Pages that have
 * been read count as resident until ckpt_release. The files must not shrink while they are open.
 * A checkpoint belongs to one thread at a time.
 *
 * Errors, everywhere: IO (a file that cannot be read), FORMAT (damaged, cut short, contradicting
 * itself or without some of its files), UNSUPPORTED (intact, but not something that holds usable
 * weights, or with contents that the readers refuse: the message names it), MEMORY. The messages
 * start with the file's path.
 */
#ifndef CKPT_CHECKPOINT_H
#define CKPT_CHECKPOINT_H

#include "dtype.h"

/* Element (i0, i1, ...) is the ckpt_dtype_size(dtype) bytes at data + size * sum(i * stride). They
 * are little-endian and need NOT be aligned: copy them out with memcpy or ckpt_copy. */
typedef struct ckpt_tensor {
    const char *name;
    ckpt_dtype dtype;
    int ndim;                      /* 0 (a scalar) to CKPT_MAX_DIMS */
    int64_t shape[CKPT_MAX_DIMS];  /* >= 0 */
    int64_t stride[CKPT_MAX_DIMS]; /* in elements, >= 0; C order unless the file says otherwise */
    const uint8_t *data;           /* the first element, in a mapped file */
    uint64_t available;            /* bytes from data to the end of the storage; every element lies
                                    * within, and there are at most available / size elements */
    const char *file;              /* path of the file it lies in */
    uint32_t storage; /* what it shares with tied tensors and views: for ckpt_check_crc */
} ckpt_tensor;

/* One entry of an AWQ search result; formats as llm-awq's --dump_awq writes them. */
typedef struct ckpt_search {
    bool is_clip;              /* false: scale, shape [in]; true: clip, shape [out, groups, 1] */
    const char *op;            /* scale: the module before the layers; clip: the layer itself */
    const char *const *layers; /* scale: the layers whose columns it scales; clip: none */
    size_t layer_count;
    const ckpt_tensor *tensor;
} ckpt_search;

typedef enum ckpt_kind {
    CKPT_NONE,
    CKPT_WEIGHTS, /* names to tensors */
    CKPT_SEARCH   /* AWQ search results */
} ckpt_kind;

typedef struct checkpoint {
    ckpt_kind kind;
    const char *format; /* "torch zip", "safetensors, 2 shards", "split directory (54 files)"... */
    const ckpt_tensor *tensors; /* [count] ascending by name, numbers in names by value: layers.2
                                 * before layers.10. AWQ search: "scale[0] prev -> layer, layer" and
                                 * "clip[0] layer" */
    size_t count;
    const ckpt_search *search; /* [search_count] AWQ search: file order, scales then clips */
    size_t search_count;
    size_t file_count;
    uint64_t file_bytes;      /* of all files together */
    struct ckpt_state *state; /* private: mappings, storages, strings */
} checkpoint;

/* Opens one file (of any kind above) or a split folder. On failure *out is empty, except that kind
 * is CKPT_SEARCH if the file was refused (UNSUPPORTED) because it holds AWQ search results. */
int ckpt_open(const char *path, checkpoint *out, tc_error *err);

/* Opens the weights in a Hugging Face folder. The first of these that is there:
 * model.safetensors, model.safetensors.index.json + shards, pytorch_model.bin,
 * pytorch_model.bin.index.json + shards, the only *.safetensors, the only *.pt, *.pth or *.bin
 * that is no model file of ours. */
int ckpt_open_hf(const char *dir, checkpoint *out, tc_error *err);

/* For listing: as ckpt_open, and also AWQ search results and Hugging Face folders. */
int ckpt_open_any(const char *path, checkpoint *out, tc_error *err);

/* Whether the file is one of tinychat's own, made of a checkpoint. */
bool ckpt_is_model(const char *path);

/* Unmaps and frees everything, the tensors' names and data included. Harmless on an empty one. */
void ckpt_close(checkpoint *ckpt);

/* The tensor with exactly this name, NULL if there is none. Cost: log2(count) comparisons. */
const ckpt_tensor *ckpt_find(const checkpoint *ckpt, const char *name);

/* Compares the data of the storage that the tensor lies in with the file's CRC-32: once per
 * storage, however often it is called and however many tensors share it. Files without checksums
 * (legacy streams, safetensors, zip members with CRC 0) always pass. Streams through the data in
 * pieces and keeps no large storage resident. FORMAT error naming file and member on a mismatch. */
int ckpt_check_crc(checkpoint *ckpt, const ckpt_tensor *tensor, tc_error *err);

/* Tells the system that the tensor's data will not be needed soon: the pages that lie wholly inside
 * it leave the resident set. Only a hint, and valid at any time: reading on, or again, is merely
 * slower. So call it every 64 MB or so while working through a large tensor, too. */
void ckpt_release(const checkpoint *ckpt, const ckpt_tensor *tensor);

/* Number of elements: the product of the shape (no overflow: checked when opening). */
uint64_t ckpt_elements(const ckpt_tensor *tensor);

/* Whether the elements lie in C order without gaps. */
bool ckpt_contiguous(const ckpt_tensor *tensor);

/* Copies the elements of slices first .. first+count-1 of dimension 0 to `out` in C order without
 * gaps, whatever the strides are: count * (elements / shape[0]) elements. A scalar counts as one
 * slice. The range must lie inside the shape. */
void ckpt_copy(const ckpt_tensor *tensor, int64_t first, int64_t count, void *out);

/* "F16 [32000, 4096]" for messages and listings; returns out. */
#define CKPT_SHAPE_TEXT 256
const char *ckpt_shape_text(const ckpt_tensor *tensor, char out[CKPT_SHAPE_TEXT]);

#endif /* CKPT_CHECKPOINT_H */
