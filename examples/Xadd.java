// A producer in Java without a library: XADD an image, wait for its verdict.   java examples/Xadd.java photo.jpg
//
// The queue's server: REDIS_URL (redis:// or unix://), else the one that `python -m worker --embedded` starts. Java 17.

import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.URI;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.UUID;

import static java.nio.charset.StandardCharsets.UTF_8;

class Xadd {
    static final int PATIENCE = 120; // seconds

    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 1) {
            System.err.println("usage: java examples/Xadd.java IMAGE");
            System.exit(2);
        }
        Path file = Path.of(arguments[0]);
        String prefix = set("IMGV_QUEUE_PREFIX", "image_verify");
        String folder = set("IMGV_QUEUE_EMBEDDED_DIR", System.getProperty("user.home") + "/.cache/img_ml_verify/queue");
        URI url = URI.create(set("REDIS_URL", "unix://" + folder + "/server.sock"));
        SocketAddress address = url.getScheme().equals("unix")
            ? UnixDomainSocketAddress.of(url.getPath())
            : new InetSocketAddress(url.getHost(), url.getPort() < 0 ? 6379 : url.getPort());
        try (SocketChannel server = SocketChannel.open(address)) {
            if (url.getUserInfo() != null) {
                String[] user = url.getUserInfo().split(":", 2);
                ask(server, "AUTH", user[0].isEmpty() ? "default" : user[0], user[1]);
            }
            String id = UUID.randomUUID().toString();
            ask(server, "XADD", prefix + ":jobs", "*", "job_id", id, "image", Files.readAllBytes(file),
                "filename", file.getFileName().toString());
            for (int round = 0; round < PATIENCE * 10; round++) {
                String answer = ask(server, "GET", prefix + ":verdict:" + id);
                if (answer != null) {
                    System.out.println(answer);
                    System.exit(answer.contains("\"error\":{") || answer.contains("\"error\": {") ? 3 : 0);
                }
                Thread.sleep(100);
            }
        }
        System.err.println("no answer within " + PATIENCE + " s; does a worker run?");
        System.exit(3);
    }

    static String set(String name, String otherwise) {
        String value = System.getenv(name);
        return value == null || value.isEmpty() ? otherwise : value;
    }

    /** One command in the protocol of Redis, an array of bulk strings, and its answer: a status, a number, a string, null. */
    static String ask(SocketChannel server, Object... parts) throws IOException {
        write(server, ("*" + parts.length + "\r\n").getBytes(UTF_8));
        for (Object part : parts) {
            byte[] bytes = part instanceof byte[] raw ? raw : part.toString().getBytes(UTF_8);
            write(server, ("$" + bytes.length + "\r\n").getBytes(UTF_8));
            write(server, bytes);
            write(server, "\r\n".getBytes(UTF_8));
        }
        StringBuilder line = new StringBuilder();
        while (line.length() < 2 || line.charAt(line.length() - 1) != '\n') {
            line.append((char) read(server, 1)[0]);
        }
        String head = line.substring(1, line.length() - 2);
        switch (line.charAt(0)) {
            case '-': throw new IOException(head);
            case '$': break;
            default: return head;
        }
        int length = Integer.parseInt(head);
        return length < 0 ? null : new String(read(server, length + 2), 0, length, UTF_8);
    }

    static void write(SocketChannel server, byte[] bytes) throws IOException {
        ByteBuffer buffer = ByteBuffer.wrap(bytes);
        while (buffer.hasRemaining()) {
            server.write(buffer);
        }
    }

    static byte[] read(SocketChannel server, int size) throws IOException {
        ByteBuffer buffer = ByteBuffer.allocate(size);
        while (buffer.hasRemaining()) {
            if (server.read(buffer) < 0) {
                throw new IOException("the queue's server has closed the connection");
            }
        }
        return buffer.array();
    }
}
