/* The capsule C_API: see core_api.h. */
#include "core_api.h"

#include "channel.h"

/* The types that may come through the capsule. One interpreter: the machine's processes have no more. */
static PyTypeObject *channel_type, *gpa_map_type;

static struct endpoint *enter_channel(PyObject *object)
{
    if (Py_TYPE(object) != channel_type) {
        PyErr_SetString(PyExc_TypeError, "a bus.native.Channel is wanted");
        return NULL;
    }
    struct channel *channel = (struct channel *)object;
    if (channel_check(channel, WAIT_FOR_SPACE) < 0 || channel_enter(channel, WAIT_FOR_DATA) < 0)
        return NULL;
    if (channel->held > 0) {
        PyErr_SetString(PyExc_RuntimeError, "packets of this channel are held");
        channel_leave(channel, NULL);
        return NULL;
    }
    channel->waits[WAIT_FOR_DATA] = channel->waits[WAIT_FOR_SPACE] = true;
    return &channel->endpoint;
}

static int leave_channel(PyObject *object, bool corrupt)
{
    struct channel *channel = (struct channel *)object;
    channel->waits[WAIT_FOR_DATA] = channel->waits[WAIT_FOR_SPACE] = false;
    channel->corrupt |= corrupt;
    const int result = channel->closed || channel->corrupt ? channel_refuse(channel, WAIT_FOR_DATA) : 0;
    channel_leave(channel, NULL);
    return result;
}

static const struct gpa_table *enter_gpa_map(PyObject *object)
{
    if (Py_TYPE(object) != gpa_map_type) {
        PyErr_SetString(PyExc_TypeError, "a bus.native.GpaMap is wanted");
        return NULL;
    }
    return gpa_map_enter(object);
}

static const struct core_api api = {
    .api_bytes = sizeof api,
    .endpoint_bytes = sizeof(struct endpoint),
    .gpa_range_bytes = sizeof(struct gpa_range),
    .channel_enter = enter_channel,
    .channel_leave = leave_channel,
    .gpa_enter = enter_gpa_map,
    .gpa_leave = gpa_map_leave,
};

int core_api_add(PyObject *module)
{
    channel_type = (PyTypeObject *)PyObject_GetAttrString(module, "Channel");
    gpa_map_type = (PyTypeObject *)PyObject_GetAttrString(module, "GpaMap");
    PyObject *capsule = PyCapsule_New((void *)&api, CORE_API_CAPSULE, NULL);
    if (!channel_type || !gpa_map_type || !capsule) {
        Py_XDECREF(capsule);
        return -1;
    }
    const int result = PyModule_AddObjectRef(module, "C_API", capsule);
    Py_DECREF(capsule);
    return result;
}
