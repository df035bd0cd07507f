/* sink: the least a server can do. It reads requests, throws their bodies away and answers 201, so that the load
 * generator's own limit can be measured: sink port=N. It listens on 127.0.0.1 and runs until it is ended.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_MAX = 8192, READ_AT_ONCE = 1 << 20 };

typedef struct { int fd; size_t head_length; long long body_left; char head[HEAD_MAX + 1]; } Peer;

static const char ANSWER[] = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
static char *buffer;

static void die(const char *what) {
    fprintf(stderr, "sink: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* Read what is there; 0 when the client has gone. One request at a time: no client here sends the next one early. */
static int serve(Peer *p) {
    ssize_t n = recv(p->fd, buffer, READ_AT_ONCE, 0);
    if (n < 0) return errno == EAGAIN;
    if (n == 0) return 0;
    if (p->body_left < 0) {
        size_t room = HEAD_MAX - p->head_length, copied = (size_t)n < room ? (size_t)n : room, before = p->head_length;
        memcpy(p->head + before, buffer, copied);
        p->head_length += copied;
        p->head[p->head_length] = 0;
        char *end = strstr(p->head, "\r\n\r\n"), *length = strcasestr(p->head, "content-length:");
        if (!end) return p->head_length < HEAD_MAX;
        p->body_left = (length ? atoll(length + 15) : 0) - ((long long)before + n - (end + 4 - p->head));
    } else p->body_left -= n;
    if (p->body_left > 0) return 1;
    p->body_left = -1;
    p->head_length = 0;
    return send(p->fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL) == sizeof ANSWER - 1;
}

int main(int count, char **arguments) {
    if (count != 2 || strncmp(arguments[1], "port=", 5)) { errno = EINVAL; die("usage: sink port=N"); }
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1] + 5)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll_fd = epoll_create1(0);
    buffer = malloc(READ_AT_ONCE);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (!buffer || bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) die("listen");
    struct epoll_event e = {EPOLLIN, {.ptr = NULL}}, events[256];
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e)) die("epoll_ctl");
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < n; i++) {
            Peer *p = events[i].data.ptr;
            if (!p) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                p = calloc(1, sizeof *p);
                if (!p) die("memory");
                *p = (Peer){.fd = fd, .body_left = -1};
                e = (struct epoll_event){EPOLLIN, {.ptr = p}};
                if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
            } else if (!serve(p)) { close(p->fd); free(p); }
        }
    }
}
