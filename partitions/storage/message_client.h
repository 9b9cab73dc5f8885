/* What the types around message_calls.h share: the calls of a Python object, and who gets the next socket. */
#ifndef PARTVISOR_MESSAGE_CLIENT_H
#define PARTVISOR_MESSAGE_CLIENT_H

#include "blockio.h"
#include "message_calls.h"

enum received { RECEIVED_NOTHING, RECEIVED_GONE, RECEIVED_BROKEN }; /* by MessageCalls.receive(), where it is no reply */

struct message_calls *message_calls_of(PyObject *object); /* a MessageCalls */

/* Become its one user, until message_calls_leave(). NULL: an exception is set (RuntimeError: another thread
 * is at it). */
struct message_calls *message_calls_enter(PyObject *object);
void message_calls_leave(PyObject *object);

/* The data area that its requests name. NULL: [start, start + count) is not of it; ValueError is set. */
uint8_t *message_calls_area(PyObject *object, Py_ssize_t start, Py_ssize_t count);

/* The same by address; start of `bytes` in the area, or -1 with an exception set. */
Py_ssize_t message_calls_place(PyObject *object, const void *bytes, Py_ssize_t count);

/* Ask `recover(broken)` for another socket. False: an exception is set. */
bool message_calls_recover(PyObject *recover, bool broken);

#endif
