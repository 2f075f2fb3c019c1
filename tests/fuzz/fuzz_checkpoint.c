/* Fuzzes ckpt_open with the input as a file (in $TMPDIR or /tmp), reads every element of every
 * tensor it accepts, and checks what checkpoint.h promises. */
#include "driver.h"

#include "convert/checkpoint.h"

static void use_tensor(checkpoint *ckpt, const ckpt_tensor *tensor) {
    uint64_t elements = ckpt_elements(tensor), size = ckpt_dtype_size(tensor->dtype);
    char text[CKPT_SHAPE_TEXT];
    tc_error err;
    if (elements > tensor->available / size) abort();
    if (ckpt_find(ckpt, tensor->name) != tensor) abort();
    if (!strchr(ckpt_shape_text(tensor, text), ']')) abort();
    ckpt_contiguous(tensor);
    uint8_t *copy = malloc((size_t)(elements * size) + 1);
    if (!copy) abort();
    ckpt_copy(tensor, 0, tensor->ndim ? tensor->shape[0] : 1, copy);
    free(copy);
    ckpt_check_crc(ckpt, tensor, &err);
    ckpt_release(ckpt, tensor);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[240];
    checkpoint ckpt;
    tc_error err;
    fuzz_write_checkpoint(fuzz_path(path, "checkpoint"), data, size);
    int code = ckpt_open_any(path, &ckpt, &err);
    unlink(path);
    if (code != err.code || (code && (!err.message[0] || ckpt.state))) abort();
    if (code) return 0;
    for (size_t i = 0; i < ckpt.count; i++) use_tensor(&ckpt, &ckpt.tensors[i]);
    for (size_t i = 0; i < ckpt.search_count; i++) {
        const ckpt_search *entry = &ckpt.search[i];
        const char *kind = entry->is_clip ? "clip[" : "scale[";
        if (strncmp(entry->tensor->name, kind, strlen(kind))) abort();
        if (!strstr(entry->tensor->name, entry->op)) abort();
    }
    ckpt_close(&ckpt);
    return 0;
}
