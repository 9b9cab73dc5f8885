/* Receiving with the payload left in place: views of the ring's own memory, good until the packet is released. */
#include "channel_receive.h"

static PyObject *view_of(struct channel *channel, uint32_t at, uint32_t bytes)
{
    const Py_ssize_t start = channel->reader_data_offset + at;
    return PySequence_GetSlice(channel->memory_view, start, start + bytes);
}

static PyObject *views(struct channel *channel)
{
    struct ring_packet packet;
    const int found = channel_next_packet(channel, &packet, 0);
    if (found <= 0)
        return found < 0 ? NULL : PyList_New(0);
    const uint32_t to_end = channel->endpoint.reader.size_bytes - packet.payload_at;
    const uint32_t first = packet.payload_bytes < to_end ? packet.payload_bytes : to_end;
    PyObject *list = PyList_New(packet.payload_bytes > first ? 2 : 1);
    PyObject *view = list ? view_of(channel, packet.payload_at, first) : NULL;
    if (view)
        PyList_SetItem(list, 0, view);
    if (view && packet.payload_bytes > first) {
        view = view_of(channel, 0, packet.payload_bytes - first);
        if (view)
            PyList_SetItem(list, 1, view);
    }
    if (!view) {
        Py_XDECREF(list);
        return NULL;
    }
    channel_hold(channel, &packet);
    return list;
}

PyObject *channel_peek_views(struct channel *channel, PyObject *unused)
{
    return channel_enter(channel, WAIT_FOR_DATA) < 0 ? NULL : channel_leave(channel, views(channel));
}
