/* search - AWQ search results (llm-awq's --dump_awq, the model zoo) applied to a plan: what they
 * scale and clip becomes steps of the plan's tensors, done when these are written.
 *
 * An entry of `scale` names a module and the linear layers behind it. The layers' columns are
 * multiplied by the scales, and what the module puts out is divided by them: a norm's weight and
 * bias; a linear layer's last rows and bias (of fused q, k, v these are v's); an activation, by
 * act_scales at run time. An entry of `clip` limits the weights of a layer. All scales come before
 * all clips, both in the order of the file.
 */
#ifndef CONVERT_SEARCH_H
#define CONVERT_SEARCH_H

#include "plan.h"

/* The group size that the clips were searched for into *group, which must be 0 or the same. It is
 * left alone if there are no clips. Errors: FORMAT, UNSUPPORTED. */
int search_group(const checkpoint *search, plan *p, uint32_t *group, tc_error *err);

/* Adds the steps to the plan, whose group size is set. Errors: FORMAT for an entry that names no
 * module of the model or has another shape, or if a layer has no entry at all; UNSUPPORTED. */
int search_bind(const hf_config *config, const checkpoint *search, plan *p, tc_error *err);

#endif /* CONVERT_SEARCH_H */
