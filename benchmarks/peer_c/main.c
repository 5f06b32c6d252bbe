/*
 * The floor: what the kernel takes for the same frames in and the same requests out.
 *
 * One loop around epoll takes VerneMQ's frames and posts each as it is over 32 connections. Nothing is parsed, kept on disk, tried
 * again or kept in order, and anything unexpected ends it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OUT = 32, WAITING = 1024, READ = 65536, HEAD = 512 };

typedef struct {
    int fd, out, busy;
    char *data;
    size_t size, room;
} Connection;

typedef struct {
    char *data;
    size_t size;
} Request;

static Connection *outs[OUT], *paused[1024];
static Request waiting[WAITING];
static size_t first, count, stopped;
static int poller;
static char head[HEAD];
static size_t head_size;

static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, errno ? strerror(errno) : "unexpected");
    exit(1);
}

static void watch(Connection *connection, int how) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(poller, how, connection->fd, &event) < 0)
        die("epoll_ctl");
}

static Connection *add(int fd, int out) {
    Connection *connection = calloc(1, sizeof *connection);
    int yes = 1;
    connection->fd = fd;
    connection->out = out;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    watch(connection, EPOLL_CTL_ADD);
    return connection;
}

static void post(Connection *out, Request request) {
    for (size_t sent = 0; sent < request.size;) {
        ssize_t n = send(out->fd, request.data + sent, request.size - sent, MSG_NOSIGNAL);
        if (n < 0)
            die("send");
        sent += n;
    }
    free(request.data);
    out->busy = 1;
}

/* Send a frame, or have it wait for a connection. */
static void take(const char *frame, size_t size) {
    Request request = {malloc(head_size + 32 + size), 0};
    memcpy(request.data, head, head_size);
    request.size = head_size + sprintf(request.data + head_size, "content-length: %zu\r\n\r\n", size);
    memcpy(request.data + request.size, frame, size);
    request.size += size;
    for (int i = 0; i < OUT && !count; i++)
        if (!outs[i]->busy) {
            post(outs[i], request);
            return;
        }
    waiting[(first + count++) % WAITING] = request;
}

static void frames(Connection *in) {
    size_t at = 0;
    while (in->size - at >= 4 && count < WAITING) {
        uint32_t size;
        memcpy(&size, in->data + at, 4);
        size = ntohl(size);
        if (in->size - at < 4 + (size_t)size)
            break;
        take(in->data + at + 4, size);
        at += 4 + (size_t)size;
    }
    memmove(in->data, in->data + at, in->size -= at);
    if (count == WAITING && !in->busy) {
        in->busy = 1;
        paused[stopped++] = in;
        epoll_ctl(poller, EPOLL_CTL_DEL, in->fd, NULL);
    }
}

static void resume(void) {
    while (stopped && count < WAITING / 2) {
        Connection *in = paused[--stopped];
        in->busy = 0;
        watch(in, EPOLL_CTL_ADD);
        frames(in);
    }
}

static void readable(Connection *connection) {
    if (connection->room - connection->size < READ)
        connection->data = realloc(connection->data, connection->room = 2 * connection->room + READ);
    ssize_t n = recv(connection->fd, connection->data + connection->size, READ, 0);
    if (n <= 0) {
        if (connection->out)
            die("the endpoint");
        close(connection->fd);
        return;
    }
    connection->size += n;
    if (!connection->out) {
        frames(connection);
    } else if (memmem(connection->data, connection->size, "\r\n\r\n", 4)) {
        connection->size = connection->busy = 0;
        if (count) {
            post(connection, waiting[first]);
            first = (first + 1) % WAITING;
            count--;
        }
        resume();
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, there = here;
    int port = 0, to = 0, yes = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--port"))
            port = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--url"))
            sscanf(argv[i + 1], "http://127.0.0.1:%d/", &to);
    }
    here.sin_port = htons(port);
    there.sin_port = htons(to);
    head_size = sprintf(head, "POST /hook HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n", to);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (!port || !to || bind(listener, (void *)&here, sizeof here) || listen(listener, 1024))
        die("--port and --url http://127.0.0.1:PORT/hook");
    poller = epoll_create1(0);
    for (int i = 0; i < OUT; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (void *)&there, sizeof there))
            die("connect");
        outs[i] = add(fd, 1);
    }
    Connection listening = {.fd = listener};
    watch(&listening, EPOLL_CTL_ADD);
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < n; i++) {
            Connection *connection = events[i].data.ptr;
            if (connection == &listening)
                add(accept(listener, NULL, NULL), 0);
            else
                readable(connection);
        }
    }
}
