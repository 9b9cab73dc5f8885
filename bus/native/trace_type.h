/* From a Python object to the trace in it, for the types that stamp. */
#ifndef PARTVISOR_TRACE_TYPE_H
#define PARTVISOR_TRACE_TYPE_H

#include "module.h"
#include "trace.h"

/* As long as the object lives. NULL with TypeError set: it is no Trace. */
const struct trace *trace_of(const struct module_state *state, PyObject *object);

#endif
