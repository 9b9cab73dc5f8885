/* A message client and a message server over real sockets, against a model, for the sanitizers.
 *
 *   message_property [seeds]
 *
 * Reads and writes of all sizes, some of them wrong, many waiting; sockets that end at any moment, and are followed by
 * others, as servers are; messages of random bytes, and such as are nearly right. What is asked for again is a write of the
 * same bytes or a read, so the model holds whatever was done twice. */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block_request.h"
#include "message_calls.h"
#include "message_server.h"

#define BLOCK 512u
#define BLOCKS 256u
#define SLOTS 8u
#define SLOT_BYTES 8192u
#define STEPS 400

static uint64_t state;
static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33) % below;
}

/* The server's thread: the sockets come one after the other; -1 ends it. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news = PTHREAD_COND_INITIALIZER;
static int given[2] = {-2, -2}; /* -2: none */
static int image;

static int next_socket(void)
{
    pthread_mutex_lock(&mutex);
    while (given[0] == -2)
        pthread_cond_wait(&news, &mutex);
    const int taken = given[0];
    given[0] = given[1];
    given[1] = -2;
    pthread_cond_signal(&news);
    pthread_mutex_unlock(&mutex);
    return taken;
}

static void give(int socket)
{
    pthread_mutex_lock(&mutex);
    while (given[1] != -2)
        pthread_cond_wait(&news, &mutex);
    given[given[0] == -2 ? 0 : 1] = socket;
    pthread_cond_signal(&news);
    pthread_mutex_unlock(&mutex);
}

/* What Python does: whatever it is, it is answered, and what may be done already is done again. */
static void answer(struct message_server *server, int socket)
{
    struct block_transfer transfer;
    if (server->received_bytes < MESSAGE_BYTES_MIN || !message_head_is_valid(server->head, server->received_bytes))
        return;
    struct message_head head = *server->head;
    struct storvsp_packet packet = *server->packet;
    const struct iovec piece = {server->area, head.area_bytes};
    head.kind = MESSAGE_REPLY;
    head.inline_bytes = 0;
    packet.operation = STORVSP_COMPLETE_IO;
    packet.srb_status = 4;
    if (block_request_parse(&server->disk, server->packet, &transfer) && transfer.bytes == head.area_bytes
        && (!transfer.write || server->head->inline_bytes == head.area_bytes)) {
        assert(block_request_move(server->fd, &transfer, &piece, 1));
        packet = *server->packet;
        block_request_make_answer(&packet, &transfer);
        head.inline_bytes = transfer.write ? 0 : transfer.bytes;
    }
    struct iovec parts[3] = {{&head, sizeof head}, {&packet, sizeof packet}, {server->area, head.inline_bytes}};
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    (void)!sendmsg(socket, &message, MSG_NOSIGNAL);
}

static void *serve(void *unused)
{
    (void)unused;
    struct device_lock lock = {0};
    struct message_record record = {0};
    struct message_head head;
    struct storvsp_packet packet;
    struct message_server server = {
        .fd = image,
        .disk = {.block_bytes = BLOCK, .max_transfer_bytes = 64 * BLOCK, .blocks = BLOCKS, .writable = true},
        .lock = &lock,
        .record = &record,
        .head = &head,
        .packet = &packet,
        .area = malloc(MESSAGE_DATA_BYTES_MAX),
        .armed = &(_Atomic uint32_t){0},
    };
    for (int socket; (socket = next_socket()) != -1; close(socket)) {
        while (message_server_run(&server, socket) == MESSAGE_SERVER_LEFT) {
            if (server.holds_device)
                device_lock_release(&lock);
            atomic_store(&record.phase, MESSAGE_IDLE);
            answer(&server, socket);
        }
        assert(lock.next_ticket == lock.serving);
    }
    free(server.area);
    return NULL;
}

static int connect_to_server(void)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0)
        abort();
    give(pair[1]);
    return pair[0];
}

/* Somebody else's socket, whose bytes are no request, or not quite. */
static void lie(void)
{
    uint8_t bytes[sizeof(struct message_head) + STORVSP_PACKET_BYTES + 700];
    const int socket = connect_to_server();
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)draw(256);
    if (draw(4)) {
        struct message_head head = {.transaction_id = draw(1u << 30), .area_bytes = draw(1024), .inline_bytes = draw(700),
                                    .kind = (uint16_t)(1 + draw(3)), .packet_bytes = (uint16_t)(40 + draw(30))};
        struct storvsp_packet packet;
        block_request_build(&packet, false, draw(2 * BLOCKS), draw(100), draw(1u << 20));
        packet.cdb_or_sense[draw(SRB_SENSE_AREA_BYTES)] ^= (uint8_t)draw(2);
        memcpy(bytes, &head, sizeof head);
        memcpy(bytes + sizeof head, &packet, sizeof packet);
    }
    (void)!send(socket, bytes, draw(4) ? MESSAGE_BYTES_MIN + draw(700) : 1 + draw(100), MSG_NOSIGNAL);
    close(socket);
}

static void play(uint64_t seed)
{
    static uint8_t model[BLOCKS * BLOCK], area[SLOTS][SLOT_BYTES];
    struct message_calls calls = {.socket = -1, .began = true, .call = calloc(MESSAGE_CALLS_MAX, sizeof *calls.call)};
    struct {
        bool write, wrong;
        uint32_t at, bytes;
    } flying[SLOTS] = {0};
    pthread_t thread;
    state = seed;
    memset(model, 0, sizeof model);
    image = memfd_create("message_property", 0);
    if (ftruncate(image, sizeof model) != 0 || pthread_create(&thread, NULL, serve, NULL) != 0)
        abort();
    message_calls_connect(&calls, connect_to_server());
    uint32_t next = 0, oldest = 0;
    for (int step = 0; step < STEPS || oldest != next;) {
        if (step < STEPS && next - oldest < SLOTS && draw(3)) {
            const uint32_t slot = next % SLOTS, blocks = 1 + draw(SLOT_BYTES / BLOCK), lba = draw(BLOCKS + 8);
            struct storvsp_packet packet;
            flying[slot].write = draw(2);
            flying[slot].wrong = lba + blocks > BLOCKS;
            flying[slot].at = lba * BLOCK;
            flying[slot].bytes = blocks * BLOCK;
            block_request_build(&packet, flying[slot].write, lba, blocks, blocks * BLOCK);
            memset(area[slot], flying[slot].write ? (int)draw(256) : 0xEE, SLOT_BYTES);
            calls.turn = draw(2) ? message_turn(7, (uint32_t)step + 1) : 0;
            calls.step = 0;
            struct message_call *call =
                message_calls_add(&calls, &packet, sizeof packet, next, blocks * BLOCK, flying[slot].write);
            assert(call);
            call->one = (struct iovec){area[slot], blocks * BLOCK};
            call->data = &call->one;
            call->data_count = 1;
            next++;
            step++;
            continue;
        }
        struct message_reply reply;
        if (draw(20) == 0) {
            shutdown(calls.socket, SHUT_RDWR);
            if (draw(2))
                lie();
        }
        switch (message_calls_receive(&calls, oldest != next && draw(4) ? MESSAGE_CALLS_FOREVER : 0, &reply)) {
        case CALLS_REPLY: {
            const uint32_t slot = oldest % SLOTS;
            assert(oldest != next && reply.head.transaction_id == oldest);
            assert(block_request_went_well(&reply.packet, flying[slot].bytes) == !flying[slot].wrong);
            if (!flying[slot].wrong) {
                if (flying[slot].write)
                    memcpy(model + flying[slot].at, area[slot], flying[slot].bytes);
                else
                    assert(memcmp(model + flying[slot].at, area[slot], flying[slot].bytes) == 0);
            }
            oldest++;
            break;
        }
        case CALLS_NOTHING:
        case CALLS_INTERRUPTED:
            break;
        case CALLS_GONE:
        case CALLS_BROKEN:
            close(calls.socket);
            message_calls_connect(&calls, connect_to_server());
            break;
        }
        if (oldest == next && step == STEPS)
            break;
    }
    close(calls.socket);
    give(-1);
    pthread_join(thread, NULL);
    given[0] = given[1] = -2;
    static uint8_t content[sizeof model];
    assert(pread(image, content, sizeof content, 0) == (ssize_t)sizeof content);
    assert(memcmp(content, model, sizeof model) == 0);
    close(image);
    free(calls.call);
}

int main(int argc, char **argv)
{
    const int seeds = argc > 1 ? atoi(argv[1]) : 20;
    for (int seed = 1; seed <= seeds; seed++) {
        fprintf(stderr, "\rseed %d", seed);
        play((uint64_t)seed);
    }
    fprintf(stderr, "\r%d seeds hold\n", seeds);
    return 0;
}
