/* A channel whose server keeps to a budget. */
#ifndef PARTVISOR_SERVICE_BUDGET_TYPE_H
#define PARTVISOR_SERVICE_BUDGET_TYPE_H

#include "channel.h"
#include "service_budget.h"

PyObject *channel_charge_to(struct channel *channel, PyObject *budget);

/* Between enter and leave, by the receiver, where the endpoint has a budget: pay for what was done since, and rest if that
 * was too much. -1: an exception is set. */
int channel_pace(struct channel *channel);

#endif
