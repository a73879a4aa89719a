// back PORT BYTES: the HTTP/1.1 server behind the proxies.
//
// It answers the end of every request head with the same response of BYTES body
// bytes, keeps connections open and pipelines. It is there to cost as little as
// possible, so that the proxy is what is measured: it knows no request bodies and
// reads nothing of a head but its end.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAXFD = 65536, EVENTS = 256 };

// conn is what is kept for a connection, by its descriptor.
static struct conn {
	size_t owed;          // response bytes not yet written, over all requests
	unsigned char match;  // how much of CR LF CR LF the last bytes were
	unsigned char waits;  // EPOLLOUT is asked for
} conns[MAXFD];

static char *response;
static size_t size;
static int poller;

static void die(const char *what) { perror(what); exit(1); }

static void watch(int op, int fd, unsigned events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };
	if (epoll_ctl(poller, op, fd, &e)) die("epoll_ctl");
}

// heads counts the request heads that end within the bytes.
static size_t heads(struct conn *c, const char *p, size_t n)
{
	if (c->match == 0 && n >= 4 && memcmp(p + n - 4, "\r\n\r\n", 4) == 0 && memmem(p, n - 1, "\r\n\r\n", 4) == NULL)
		return 1; // one whole head, as nearly always
	size_t found = 0;
	for (size_t i = 0; i < n; i++) {
		char want = c->match % 2 == 0 ? '\r' : '\n';
		if (p[i] == want) {
			if (++c->match == 4) {
				found++;
				c->match = 0;
			}
		} else {
			c->match = p[i] == '\r';
		}
	}
	return found;
}

// pay writes what is owed; it returns -1 where the connection is lost.
static int pay(int fd, struct conn *c)
{
	while (c->owed > 0) {
		size_t rest = c->owed % size ? c->owed % size : size;
		ssize_t n = send(fd, response + size - rest, rest, MSG_NOSIGNAL);
		if (n < 0) {
			if (errno != EAGAIN) return -1;
			if (!c->waits) watch(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT);
			c->waits = 1;
			return 0;
		}
		c->owed -= (size_t)n;
	}
	if (c->waits) watch(EPOLL_CTL_MOD, fd, EPOLLIN);
	c->waits = 0;
	return 0;
}

static void accept_all(int listener)
{
	for (;;) {
		int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) return;
		if (fd >= MAXFD) {
			close(fd);
			continue;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		conns[fd] = (struct conn){ 0 };
		watch(EPOLL_CTL_ADD, fd, EPOLLIN);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: back PORT BYTES\n");
		return 2;
	}
	size_t body = (size_t)atol(argv[2]);
	response = malloc(body + 256);
	int head = sprintf(response, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: %zu\r\n\r\n", body);
	memset(response + head, 'x', body);
	size = (size_t)head + body;

	signal(SIGPIPE, SIG_IGN);
	int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 4096)) die("listen");
	poller = epoll_create1(EPOLL_CLOEXEC);
	watch(EPOLL_CTL_ADD, listener, EPOLLIN);

	static char buf[65536];
	struct epoll_event ev[EVENTS];
	for (;;) {
		int n = epoll_wait(poller, ev, EVENTS, -1);
		for (int i = 0; i < n; i++) {
			int fd = ev[i].data.fd;
			if (fd == listener) {
				accept_all(listener);
				continue;
			}
			struct conn *c = &conns[fd];
			if (ev[i].events & ~(unsigned)EPOLLOUT) {
				ssize_t got = recv(fd, buf, sizeof buf, 0);
				if (got == 0 || (got < 0 && errno != EAGAIN)) {
					close(fd);
					continue;
				}
				if (got > 0) c->owed += size * heads(c, buf, (size_t)got);
			}
			if (pay(fd, c)) close(fd);
		}
	}
}
