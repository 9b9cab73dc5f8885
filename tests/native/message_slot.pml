/* A SIM slot and its queue, checked exhaustively: the broker posts, the VP takes, and EOM is sent when it is owed.
 *
 * Sequentially consistent. A queued message that is never delivered is an invalid end state. With WITHOUT_RECHECK, which
 * must be found, the broker does not look at the slot again after it set the pending flag: the VP may have emptied the slot
 * just before, seen no flag, and owes no EOM. Source: TLFS, "Message Buffers"; bus/native/synic.c. */

#define MESSAGES 3

byte queued = 0, taken = 0;
bool occupied = false, pending = false;
bool line = false; /* raised: there is a message */
bool eom = false;  /* the VP asks for the next one */

/* Goes on until the queue is empty or the slot is known to be full: a message left in the queue must have set the flag. */
inline deliver()
{
    do
    :: queued == 0 -> break
    :: queued > 0 && !occupied -> pending = false; occupied = true; queued--; line = true
    :: queued > 0 && occupied ->
        pending = true;
#ifndef WITHOUT_RECHECK
        if
        :: !occupied -> skip
        :: else -> break
        fi
#else
        break
#endif
    od
}

active proctype broker()
{
    byte posted = 0;
end:
    do
    :: posted < MESSAGES -> posted++; queued++; deliver()
    :: eom -> eom = false; deliver()
    od
}

active proctype vp()
{
    do
    :: taken == MESSAGES -> break
    :: line ->
        line = false;
        do
        :: occupied ->
            taken++;
            occupied = false; /* full barrier */
            if
            :: pending -> eom = true
            :: else
            fi
        :: else -> break
        od
    od
}
