/* The broker route of an interrupt, checked exhaustively: sender -> kick -> router -> event flag -> doorbell -> target.
 *
 * Sequentially consistent: what fences are for is checked by sleep_wake.cpp; this is about the order of the steps.
 * A target that sleeps for ever beside a packet is an invalid end state. With TAKE_FLAG_LAST, which must be found, the target
 * clears its flag only after its last look at the ring: the news of a packet that came between is cleared with it. */

#define PACKETS 3

byte published = 0, released = 0; /* counts of packets stand for write_index and read_index */
bool mask = true;
bool flag = false;
bool kicked = false;    /* an edge-triggered eventfd that nobody reads: kicks merge */
bool rung = false;      /* the target's doorbell, likewise */

active proctype sender()
{
    byte before;
    do
    :: published < PACKETS ->
        before = published;
        published++;
        if
        :: !mask && released == before -> kicked = true
        :: else
        fi
    :: else -> break
    od
}

active proctype router()
{
end: /* it may wait here for ever */
    do
    :: kicked ->
        kicked = false;
        if
        :: atomic { !flag -> flag = true }; rung = true
        :: else /* set already: the target has been told and has not looked */
        fi
    od
}

active proctype target()
{
    do
    :: released == PACKETS -> break
    :: released < published -> released++ /* takes a packet, releases it, looks again */
    :: else -> /* nothing there: go to sleep, but look once more after saying so */
#ifndef TAKE_FLAG_LAST
        flag = false;
#endif
        mask = false;
        if
        :: released < published -> skip
        :: else ->
#ifdef TAKE_FLAG_LAST
            flag = false;
#endif
            atomic { rung -> rung = false }
        fi;
        mask = true
    od
}
