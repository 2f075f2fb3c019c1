/* Fuzzes the pickle interpreter: the input is one pickle (or several, as in a legacy stream). What
 * it accepts must hold together: tensors lie inside their storages, whatever is in the values. */
#include "driver.h"

#include "convert/pickle.h"

static void use_tensor(const pkl *p, const pkl_tensor *tensor) {
    if (tensor->storage >= p->storage_count || tensor->ndim < 0 || tensor->ndim > CKPT_MAX_DIMS)
        abort();
    /* In floating point, which cannot overflow: exact enough for the sizes that matter. */
    double last = (double)tensor->offset, elements = 1;
    double numel = (double)p->storages[tensor->storage].numel;
    for (int i = 0; i < tensor->ndim; i++) {
        if (tensor->shape[i] < 0 || tensor->stride[i] < 0) abort();
        last += ((double)tensor->shape[i] - 1) * (double)tensor->stride[i];
        elements *= (double)tensor->shape[i];
    }
    if (elements > 0 && (last >= numel || elements > numel)) abort();
}

/* Looks at everything in a value; `depth` because a value may contain itself. */
static uint64_t use(const pkl_value *value, int depth) {
    uint64_t sum = (uint64_t)value->kind + (uint8_t)*pkl_kind_name(value);
    const pkl_value *items = NULL;
    size_t count = 0;
    if (value->kind == PKL_STRING || value->kind == PKL_LONG)
        for (uint32_t i = 0; i < value->length; i++) sum += (uint8_t)value->as.text[i];
    if (value->kind == PKL_TUPLE) items = value->as.items, count = value->length;
    if (value->kind == PKL_LIST || value->kind == PKL_DICT)
        items = value->as.list->items, count = value->as.list->count;
    if (value->kind == PKL_DICT) pkl_get(value, "scale");
    for (size_t i = 0; depth < 4 && i < count && i < 1000; i++) sum += use(&items[i], depth + 1);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (int format = PKL_ZIP; format <= PKL_LEGACY; format++) {
        pkl p = {0};
        pkl_value root;
        tc_error err;
        tc__cursor at = tc__cursor_make(data, size);
        while (tc__cursor_left(&at)) {
            int code = pkl_run(&p, "fuzz", (pkl_format)format, &at, &root, &err);
            if (code != err.code) abort();
            if (code) break;
            if (use(&root, 0) == UINT64_MAX) abort(); /* never; but the compiler cannot know */
        }
        for (size_t i = 0; i < p.tensor_count; i++) use_tensor(&p, &p.tensors[i]);
        pkl_close(&p);
    }
    return 0;
}
