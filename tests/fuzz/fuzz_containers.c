/* Fuzzes the zip and safetensors readers: what they accept must lie inside the input. */
#include "driver.h"

#include "convert/safetensors.h"
#include "convert/zip.h"

static void inside(const uint8_t *data, size_t size, const uint8_t *part, size_t part_size) {
    if (part < data || part_size > size || part > data + (size - part_size)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    zip_archive zip;
    st_file st;
    tc_error err;
    if (!zip_open("fuzz", data, size, &zip, &err))
        for (size_t i = 0; i < zip.count; i++) {
            const zip_member *member = &zip.members[i];
            inside(data, size, member->data, member->size);
            inside(data, size, (const uint8_t *)member->name, member->name_len);
            if (zip_find(&zip, member->name, member->name_len) != member) abort();
        }
    zip_close(&zip);
    if (!st_open("fuzz", data, size, &st, &err))
        for (size_t i = 0; i < st.count; i++) {
            const st_tensor *tensor = &st.tensors[i];
            inside(data, size, tensor->data, tensor->size);
            if (tensor->name[tensor->name_len] != 0) abort();
        }
    st_close(&st);
    return 0;
}
