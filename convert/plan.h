/* plan - the tensors of a model file (docs/format.md) and where in a checkpoint each of them comes
 * from, by the family's page (families.h).
 */
#ifndef CONVERT_PLAN_H
#define CONVERT_PLAN_H

#include "hf_config.h"
#include "quantise.h"
#include "writer.h"

/* A vector of the model file: its parts one after another. */
typedef struct plan_vector {
    uint32_t length; /* 0: this tensor is a matrix */
    bool divisor;    /* the model divides by it: its numbers are positive */
    int part_count;
    const ckpt_tensor *parts[FAMILY_MAX_PARTS];  /* NULL: ones */
    const ckpt_tensor *divide[FAMILY_MAX_PARTS]; /* by AWQ, the last numbers; NULL: not */
} plan_vector;

typedef struct plan_tensor {
    char name[32]; /* in the model file: "3.gate_up" */
    plan_vector vector;
    repack_matrix matrix;
    bool quantise; /* the parts are plain, the matrix in the model file is not */
    quantise_steps steps[FAMILY_MAX_PARTS];
    char part_names[FAMILY_MAX_PARTS][80]; /* in the checkpoint: "model.layers.3.mlp.gate_proj" */
} plan_tensor;

typedef struct plan {
    plan_tensor *tensors; /* [count] in the order of the model file */
    size_t count;
    size_t packed, plain; /* linear layers of the blocks by kind */
    layout_kind kind;     /* of the packed ones; the first one's */
    uint32_t source_group, group;
    bool mixed;       /* they are not all like the first */
    ckpt_dtype dtype; /* of the first plain matrix */
    bool quantise;    /* the layers' matrices are quantised, into `group` */
    bool awq;         /* by AWQ search results, else by rounding to nearest */
    uint64_t input_bytes;
} plan;

/* How 16-bit layers are to be quantised. */
typedef struct plan_quantise {
    const checkpoint *search; /* AWQ search results, or NULL: rounding to nearest */
    uint32_t group;           /* 0: the search results', or the largest that suits all layers */
} plan_quantise;

/* `how`: NULL to keep the layers as they are. Errors: FORMAT (a missing tensor, a wrong shape),
 * UNSUPPORTED (a packing, a mixture within one joined matrix, a tensor that would change the
 * model's answers and is not used, a group size). On failure nothing is held. The checkpoint and
 * the search results must outlive the plan. */
int plan_make(const hf_config *config, const checkpoint *ckpt, const plan_quantise *how, plan *p,
              tc__buf *notes, tc_error *err);
void plan_free(plan *p);

/* Number i of a part of a vector, as it stands in the checkpoint. */
float plan_number(const ckpt_tensor *part, int64_t i);

#endif /* CONVERT_PLAN_H */
