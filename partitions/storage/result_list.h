/* A Python list that a queue fills while it works, and that its caller takes as a whole. */
#ifndef PARTVISOR_RESULT_LIST_H
#define PARTVISOR_RESULT_LIST_H

#include <stdbool.h>

#include "blockio.h"

/* Steals `item`; NULL: it could not be made. False: an exception is set. */
static inline bool result_list_add(PyObject *list, PyObject *item)
{
    const bool good = item && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return good;
}

/* All of it, with an empty list in its place. NULL: an exception is set, and nothing was taken. */
static inline PyObject *result_list_take(PyObject **list)
{
    PyObject *fresh = PyList_New(0), *taken = *list;
    if (!fresh)
        return NULL;
    *list = fresh;
    return taken;
}

#endif
