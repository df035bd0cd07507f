/* load: one process that is many HTTP/1.1 clients, so that the load costs little next to the server it measures.
 *
 * Every argument is name=value; the result is one line of JSON on standard output. It sends to 127.0.0.1 only, a
 * bounded number of requests, and stops at its deadline whatever the server does.
 *
 *   port=N connections=N requests=N first=N   which server, how many at once, how many in all, first index
 *   size=N pool=FILE                          bytes of a file, and where its bytes come from (below)
 *   head=FILE tail=FILE                       what is sent before and after the file's bytes
 *   create=FILE                               a request without a body to send first; its Location is %l afterwards
 *   expect=N                                  the status that means success
 *   paths=FILE                                one path a line; request i asks for line i (from 0, again and again)
 *   compare=1                                 the answer's body must be the file of that index, byte for byte
 *   pause_ms=N                                each client waits so long between two requests
 *   slow=1                                    each client sends half of one file; when all have, "holding" is said;
 *                                             the rest follows when standard input ends
 *   until_eof=1                               stop asking when standard input ends
 *   deadline_s=N                              give up after so long
 *
 * In head and create, %n is the index (8 digits), %p the path, %l the Location, %c a Cookie line with what the
 * server set on this connection, or nothing.
 *
 * File i is 16 digits that say i, and then the pool, endlessly repeated, from a place that depends on i. So no two
 * files are alike, whoever reads a stored file knows which one it should be, and nothing is copied to make it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { STAMP = 16, STRIDE = 4099, SEND_AT_ONCE = 1 << 20, RECEIVE_AT_ONCE = 1 << 18, HEAD_MAX = 4096, ANSWER_MAX = 16384 };

typedef struct { char *bytes; size_t length; } Text;

typedef enum { ASLEEP, CONNECTING, SENDING, WAITING, FINISHED } State;

typedef struct {
    int fd;
    State state;
    bool creating;               /* the first of two requests is under way */
    bool reused;                 /* the connection has carried a request before */
    bool watching_out, held;
    long index;
    char head[HEAD_MAX];
    size_t head_length, sent, total;
    char answer[ANSWER_MAX];     /* status line and headers */
    size_t answer_length;
    bool in_body, chunked, closes, unbounded;
    size_t body_left, body_at;
    char last[5];                /* the end of a chunked body is known by its last bytes */
    int status;
    char cookie[512], location[1024];
    double started, wake;
} Client;

static long port, connections = 1, requests = 1, first, size_, expect = 200, pause_ms, deadline_s = 120;
static size_t sent_size;  /* of a file in a request: size_, or nothing when files are asked for */
static bool slow, until_eof, compare;
static Text pool, head, tail, create_, paths;
static char **path_list;
static long path_count;

static Client *clients;
static int epoll_fd;
static long taken, started_clients, live, completed, failed, held, connects;
static bool released, ending;
static double *latencies, began, ended;
static unsigned long long bytes_out, bytes_in;
static char first_failure[256];
static char *receive_buffer;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static Text read_file(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat s;
    if (fd < 0 || fstat(fd, &s)) die(path);
    Text text = {malloc(s.st_size + 1), s.st_size};
    size_t at = 0;
    while (at < text.length) {
        ssize_t got = read(fd, text.bytes + at, text.length - at);
        if (got <= 0) die(path);
        at += got;
    }
    text.bytes[text.length] = 0;
    close(fd);
    return text;
}

/* Where the bytes of file `index` from `at` on are to be had, and how many lie there together. */
static size_t file_part(long index, size_t at, char stamp[STAMP + 1], char **from) {
    if (at < STAMP) {
        snprintf(stamp, STAMP + 1, "%016ld", index);
        *from = stamp + at;
        return STAMP - at;
    }
    size_t place = ((unsigned long long)index * STRIDE + at) % pool.length;
    *from = pool.bytes + place;
    return pool.length - place;
}

/* ---- one request */

static void put(Client *c, const char *bytes, size_t length) {
    if (c->head_length + length > HEAD_MAX) { errno = ENOBUFS; die("a request head is too long"); }
    memcpy(c->head + c->head_length, bytes, length);
    c->head_length += length;
}

static void render(Client *c, Text from) {
    char number[32];
    c->head_length = 0;
    for (size_t i = 0; i < from.length; i++) {
        char kind = from.bytes[i] == '%' && i + 1 < from.length ? from.bytes[i + 1] : 0;
        if (kind == 'n') { snprintf(number, sizeof number, "%08ld", c->index); put(c, number, 8); }
        else if (kind == 'p') { const char *p = path_list[c->index % path_count]; put(c, p, strlen(p)); }
        else if (kind == 'l') put(c, c->location, strlen(c->location));
        else if (kind == 'c') {
            if (c->cookie[0]) { put(c, "Cookie: ", 8); put(c, c->cookie, strlen(c->cookie)); put(c, "\r\n", 2); }
        } else { put(c, from.bytes + i, 1); continue; }
        i++;
    }
}

static void watch(Client *c, bool out) {
    if (c->watching_out == out) return;
    struct epoll_event e = {EPOLLIN | (out ? EPOLLOUT : 0), {.ptr = c}};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
    c->watching_out = out;
}

static void send_more(Client *c);
static void arrive(Client *c);

static void open_connection(Client *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connects++;
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
    struct epoll_event e = {EPOLLIN | EPOLLOUT, {.ptr = c}};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
    c->watching_out = true;
    c->state = CONNECTING;
}

static void close_connection(Client *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void begin_request(Client *c) {
    render(c, c->creating ? create_ : head);
    c->sent = 0;
    c->total = c->head_length + (c->creating ? 0 : sent_size + tail.length);
    c->answer_length = 0;
    c->in_body = c->chunked = c->closes = c->unbounded = false;
    c->body_left = c->body_at = 0;
    c->status = 0;
    c->reused = c->fd >= 0;
    if (c->reused) { c->state = SENDING; send_more(c); }
    else open_connection(c);
}

/* Begin the next request now; the client is finished when there is none. */
static void start_next(Client *c) {
    if (taken >= requests || ending) {
        close_connection(c);
        c->state = FINISHED;
        live--;
        ended = now();
        arrive(c);
        return;
    }
    c->index = first + taken++;
    c->creating = create_.length > 0;
    c->started = now();
    begin_request(c);
}

/* Begin the next request, after the pause if there is one. */
static void go_on(Client *c) {
    if (!pause_ms || ending) { start_next(c); return; }
    c->state = ASLEEP;
    c->wake = now() + pause_ms / 1e3;
}

static void failure(Client *c, const char *why) {
    if (!failed++) snprintf(first_failure, sizeof first_failure, "request %ld: %s", c->index, why);
}

/* A slow client has sent its half, or will never: let another one come. */
static void arrive(Client *c) {
    if (!slow || c->held) return;
    c->held = true;
    held++;
    if (started_clients < connections) { live++; start_next(&clients[started_clients++]); }
}

static void fail(Client *c, const char *why) {
    failure(c, why);
    close_connection(c);
    arrive(c);
    go_on(c);
}

/* The connection broke. One that had been idle may do so at any time: then the request is sent again on a new one. */
static void broken(Client *c, const char *why) {
    if (c->reused && !c->answer_length) { close_connection(c); begin_request(c); }
    else fail(c, why);
}

/* ---- sending */

static void send_more(Client *c) {
    while (c->sent < c->total) {
        size_t limit = slow && !released && !c->creating ? c->head_length + sent_size / 2 : c->total;
        if (c->sent >= limit) { watch(c, false); arrive(c); return; }
        struct iovec parts[6];
        int count = 0;
        size_t room = limit - c->sent, at = c->sent;
        char stamp[STAMP + 1];
        if (room > SEND_AT_ONCE) room = SEND_AT_ONCE;
        for (size_t left = room; left && count < 6; count++) {
            char *from;
            size_t n;
            if (at < c->head_length) { from = c->head + at; n = c->head_length - at; }
            else if (at >= c->head_length + sent_size) {
                from = tail.bytes + (at - c->head_length - sent_size);
                n = tail.length - (at - c->head_length - sent_size);
            } else {
                n = file_part(c->index, at - c->head_length, stamp, &from);
                if (n > c->head_length + sent_size - at) n = c->head_length + sent_size - at;
            }
            if (n > left) n = left;
            parts[count] = (struct iovec){from, n};
            at += n;
            left -= n;
        }
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) { watch(c, true); return; }
            if (errno == EPIPE || errno == ECONNRESET) break;  /* the server may have answered before it closed */
            broken(c, strerror(errno));
            return;
        }
        c->sent += n;
        bytes_out += n;
        if (c->total - c->head_length > SEND_AT_ONCE && c->sent < c->total) { watch(c, true); return; }  /* let others */
    }
    c->state = WAITING;
    watch(c, false);
}

/* ---- receiving */

static const char *header(Client *c, const char *name) {
    size_t n = strlen(name);
    for (char *line = strstr(c->answer, "\r\n"); line && line[2]; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, n) && line[2 + n] == ':') {
            char *value = line + 3 + n;
            while (*value == ' ') value++;
            return value;
        }
    return NULL;
}

static void copy_until(char *to, size_t room, const char *from, const char *ends) {
    size_t n = strcspn(from, ends);
    if (n >= room) n = 0;  /* too long to be carried: as if it were not there */
    memcpy(to, from, n);
    to[n] = 0;
}

static void answered(Client *c) {
    bool early = c->sent < c->total;
    long wanted = c->creating ? 201 : expect;
    if (c->status != wanted) {
        char why[64];
        snprintf(why, sizeof why, "HTTP %d instead of %ld%s", c->status, wanted, early ? ", before the body's end" : "");
        if (c->closes || early) { fail(c, why); return; }
        failure(c, why);
        go_on(c);
        return;
    }
    if (early) { fail(c, "answered before the body's end"); return; }
    if (c->closes) close_connection(c);
    if (c->creating) {
        if (!c->location[0]) { fail(c, "no Location"); return; }
        c->creating = false;
        begin_request(c);
        return;
    }
    latencies[completed++] = now() - c->started;
    go_on(c);
}

static bool right_bytes(Client *c, const char *bytes, size_t n) {
    if (!compare || c->status != expect) return true;
    if (c->body_at + n > (size_t)size_) return false;
    for (size_t done = 0; done < n;) {
        char stamp[STAMP + 1], *want;
        size_t part = file_part(c->index, c->body_at + done, stamp, &want);
        if (part > n - done) part = n - done;
        if (memcmp(want, bytes + done, part)) return false;
        done += part;
    }
    return true;
}

/* Take n bytes of the body; true when the request is over, one way or the other. */
static bool take_body(Client *c, const char *bytes, size_t n) {
    if (!right_bytes(c, bytes, n)) { fail(c, "wrong bytes in the answer"); return true; }
    c->body_at += n;
    if (c->chunked) {
        for (size_t i = n > 5 ? n - 5 : 0; i < n; i++) { memmove(c->last, c->last + 1, 4); c->last[4] = bytes[i]; }
        if (memcmp(c->last, "0\r\n\r\n", 5)) return false;
    } else if (c->unbounded) return false;
    else {
        if (n > c->body_left) { fail(c, "more bytes than Content-Length says"); return true; }
        c->body_left -= n;
        if (c->body_left) return false;
    }
    if (compare && c->status == expect && c->body_at != (size_t)size_) { fail(c, "the answer is too short"); return true; }
    answered(c);
    return true;
}

/* Understand the head of the answer, which ends at `end`; true when the request is over. */
static bool take_head(Client *c, char *end) {
    size_t rest = c->answer + c->answer_length - end;
    char *body = receive_buffer + RECEIVE_AT_ONCE;  /* room behind the buffer, for what came with the head */
    memcpy(body, end, rest);
    end[-2] = 0;  /* one line end stays, so that every header has one */
    c->status = c->answer_length > 12 ? atoi(c->answer + 9) : 0;
    const char *value;
    if (c->status / 100 == 1) {  /* an interim response: the real one follows */
        memmove(c->answer, body, rest);
        c->answer_length = rest;
        c->answer[rest] = 0;
        return (end = strstr(c->answer, "\r\n\r\n")) ? take_head(c, end + 4) : false;
    }
    if ((value = header(c, "set-cookie"))) copy_until(c->cookie, sizeof c->cookie, value, ";\r\n");
    if ((value = header(c, "location"))) {
        if (!strncmp(value, "http://", 7)) value += 7 + strcspn(value + 7, "/\r\n");
        copy_until(c->location, sizeof c->location, value, "\r\n");
    }
    if ((value = header(c, "connection"))) c->closes = !strncasecmp(value, "close", 5);
    if ((value = header(c, "content-length"))) c->body_left = strtoull(value, NULL, 10);
    else if ((value = header(c, "transfer-encoding"))) { c->chunked = true; memset(c->last, 0, 5); }
    else if (c->status != 204 && c->status != 304) { c->unbounded = true; c->closes = true; }
    c->in_body = true;
    if (!c->chunked && !c->unbounded && !c->body_left) {
        if (compare && c->status == expect) { fail(c, "the answer is empty"); return true; }
        answered(c);
        return true;
    }
    return rest ? take_body(c, body, rest) : false;
}

static void receive(Client *c) {
    for (;;) {
        int fd = c->fd;
        bool into_head = !c->in_body;
        char *to = into_head ? c->answer + c->answer_length : receive_buffer;
        size_t room = into_head ? ANSWER_MAX - 1 - c->answer_length : RECEIVE_AT_ONCE;
        if (!room) { fail(c, "the head of the answer is too long"); return; }
        ssize_t n = recv(fd, to, room, 0);
        if (n < 0) {
            if (errno == EAGAIN) return;
            broken(c, strerror(errno));
            return;
        }
        if (n == 0) {
            if (c->in_body && c->unbounded) { answered(c); return; }
            if (c->state == ASLEEP) { close_connection(c); return; }
            broken(c, "the server hung up");
            return;
        }
        bytes_in += n;
        if (into_head) {
            c->answer_length += n;
            c->answer[c->answer_length] = 0;
            char *end = strstr(c->answer, "\r\n\r\n");
            if (!end) continue;
            if (take_head(c, end + 4)) return;
        } else if (take_body(c, receive_buffer, n)) return;
        if ((size_t)n < room) return;  /* level-triggered: what comes later will be told */
    }
}

/* ---- the loop */

static void on_event(Client *c, unsigned events) {
    if (c->state == CONNECTING && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t n = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        if (error) { fail(c, strerror(error)); return; }
        c->state = SENDING;
        send_more(c);
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) { receive(c); return; }
    if (events & EPOLLOUT && c->state == SENDING) send_more(c);
}

static void on_input(void) {
    char ignored[64];
    if (read(0, ignored, sizeof ignored) > 0) return;
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, 0, NULL);
    released = true;
    ending = until_eof;
    for (long i = 0; i < started_clients; i++) {
        Client *c = &clients[i];
        if (c->state == SENDING) send_more(c);
        else if (c->state == ASLEEP) start_next(c);
    }
}

/* Wake who has paused long enough; milliseconds until the next one has. */
static int wake_up(void) {
    double at = now(), soonest = at + 1;
    for (long i = 0; pause_ms && i < started_clients; i++) {
        Client *c = &clients[i];
        if (c->state != ASLEEP) continue;
        if (c->wake <= at) start_next(c);
        else if (c->wake < soonest) soonest = c->wake;
    }
    return (int)((soonest - at) * 1e3) + 1;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double share) {
    return completed ? latencies[(long)((completed - 1) * share)] * 1e3 : 0;
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void read_arguments(int count, char **arguments) {
    for (int i = 1; i < count; i++) {
        char *value = strchr(arguments[i], '=');
        if (!value) { errno = EINVAL; die(arguments[i]); }
        *value++ = 0;
        const char *name = arguments[i];
        long number = atol(value);
        if (!strcmp(name, "port")) port = number;
        else if (!strcmp(name, "connections")) connections = number;
        else if (!strcmp(name, "requests")) requests = number;
        else if (!strcmp(name, "first")) first = number;
        else if (!strcmp(name, "size")) size_ = number;
        else if (!strcmp(name, "expect")) expect = number;
        else if (!strcmp(name, "pause_ms")) pause_ms = number;
        else if (!strcmp(name, "deadline_s")) deadline_s = number;
        else if (!strcmp(name, "slow")) slow = number;
        else if (!strcmp(name, "until_eof")) until_eof = number;
        else if (!strcmp(name, "compare")) compare = number;
        else if (!strcmp(name, "pool")) pool = read_file(value);
        else if (!strcmp(name, "head")) head = read_file(value);
        else if (!strcmp(name, "tail")) tail = read_file(value);
        else if (!strcmp(name, "create")) create_ = read_file(value);
        else if (!strcmp(name, "paths")) paths = read_file(value);
        else { errno = EINVAL; die(name); }
    }
    if (paths.length) {
        path_list = calloc(paths.length + 1, sizeof *path_list);
        for (char *line = strtok(paths.bytes, "\n"); line; line = strtok(NULL, "\n")) path_list[path_count++] = line;
    }
}

int main(int count, char **arguments) {
    read_arguments(count, arguments);
    sent_size = compare ? 0 : size_;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    clients = calloc(connections, sizeof *clients);
    latencies = calloc(requests, sizeof *latencies);
    receive_buffer = malloc(RECEIVE_AT_ONCE + ANSWER_MAX);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!clients || !latencies || !receive_buffer || epoll_fd < 0) die("start");
    if (slow || until_eof) {
        struct epoll_event e = {EPOLLIN, {.ptr = NULL}};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &e)) die("standard input");
    }
    for (long i = 0; i < connections; i++) clients[i].fd = -1;
    double cpu = cpu_seconds();
    began = now();
    /* Slow clients arrive a few at a time: a flood of connections would measure the server's backlog. */
    long at_once = slow && connections > 64 ? 64 : connections;
    while (started_clients < at_once) {
        Client *c = &clients[started_clients++];
        live++;
        if (pause_ms) { c->state = ASLEEP; c->wake = began + pause_ms / 1e3 * started_clients / connections; }
        else start_next(c);
    }
    struct epoll_event events[256];
    bool said = false;
    while (live && now() - began < deadline_s) {
        if (held >= connections && !said) { said = true; puts("holding"); fflush(stdout); }
        int n = epoll_wait(epoll_fd, events, 256, wake_up());
        for (int i = 0; i < n; i++) {
            Client *c = events[i].data.ptr;
            if (!c) on_input();
            else if (c->fd >= 0) on_event(c, events[i].events);
        }
    }
    if (live) ended = now();
    qsort(latencies, completed, sizeof *latencies, ascending);
    for (char *p = first_failure; *p; p++) if (*p == '"' || *p == '\\' || *p < ' ') *p = '\'';
    printf("{\"completed\": %ld, \"failed\": %ld, \"unfinished\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.6f, "
           "\"p50_ms\": %.4f, \"p90_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f, \"bytes_out\": %llu, "
           "\"bytes_in\": %llu, \"connects\": %ld, \"first_failure\": \"%s\"}\n",
           completed, failed, live ? taken - completed - failed : 0, ended - began, cpu_seconds() - cpu,
           percentile(.5), percentile(.9), percentile(.99), percentile(1), bytes_out, bytes_in, connects, first_failure);
    return 0;
}
