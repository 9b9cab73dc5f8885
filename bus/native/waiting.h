#ifndef PARTVISOR_WAITING_H
#define PARTVISOR_WAITING_H

#include "endpoint.h"
#include "module.h"

/* The policy of a Waiting object, or the default one for None. -1 with TypeError set. */
int waiting_policy_of(const struct module_state *state, PyObject *object, struct wait_policy *policy);

#endif
