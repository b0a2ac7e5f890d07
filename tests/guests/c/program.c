// Programs in C, as any other: they know of wasi-libc and of nothing else. The first argument says which one.
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 2;
}

// Arguments, environment, a file on a mount, standard input, and a code of its own.
static int plain(const char *dir) {
    char path[256], text[64] = {0}, line[64];
    printf("%s %s\n", dir, getenv("NAME"));
    snprintf(path, sizeof path, "%s/from-c", dir);
    FILE *file = fopen(path, "w");
    if (!file) return fail(path);
    fputs("text", file);
    fclose(file);
    file = fopen(path, "r");
    if (!file || !fgets(text, sizeof text, file)) return fail(path);
    fclose(file);
    puts(text);
    while (fgets(line, sizeof line, stdin)) {
        for (char *at = line; *at; at++) *at = (char)toupper(*at);
        fputs(line, stdout);
    }
    return 7;
}

// Gives every connection back what it sends, one after the other.
static int serve(int port) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    if (listener < 0) return fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 5)) return fail("listen");
    puts("listening");
    fflush(stdout);
    for (;;) {
        char buffer[1024];
        ssize_t length;
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) return fail("accept");
        while ((length = recv(connection, buffer, sizeof buffer, 0)) > 0) {
            for (ssize_t sent = 0, more; sent < length; sent += more)
                if ((more = send(connection, buffer + sent, (size_t)(length - sent), 0)) < 0) return fail("send");
        }
        close(connection);
    }
}

// Looks a name up, sends a word there, ends its half, and prints what comes back.
static int call(const char *host, const char *port, const char *word) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    int failed = getaddrinfo(host, port, &hints, &found);
    if (failed) {
        fprintf(stderr, "%s: %s\n", host, gai_strerror(failed));
        return 2;
    }
    int connection = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
    if (connect(connection, found->ai_addr, found->ai_addrlen)) return fail("connect");
    freeaddrinfo(found);
    send(connection, word, strlen(word), 0);
    shutdown(connection, SHUT_WR);
    char buffer[1024];
    ssize_t length;
    while ((length = recv(connection, buffer, sizeof buffer, 0)) > 0) fwrite(buffer, 1, (size_t)length, stdout);
    puts("");
    return length < 0 ? fail("recv") : 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "plain")) return plain(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "serve")) return serve(atoi(argv[2]));
    if (argc == 5 && !strcmp(argv[1], "call")) return call(argv[2], argv[3], argv[4]);
    fputs("which program?\n", stderr);
    return 1;
}
