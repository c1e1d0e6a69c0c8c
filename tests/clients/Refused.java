import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Makes requests with Java's HttpClient and prints what each was answered, as a JSON list.
 *
 * <p>Usage: java Refused.java (METHOD URL FIELD SIZE)...; arguments and output are those of refused.py.
 */
public final class Refused {
    private static final Duration PATIENCE = Duration.ofSeconds(30);

    public static void main(String[] words) {
        List<String> answers = new ArrayList<>();
        for (int at = 0; at < words.length; at += 4) {
            answers.add(send(words[at], words[at + 1], words[at + 2], Integer.parseInt(words[at + 3])));
        }
        System.out.println("[" + String.join(",", answers) + "]");
    }

    private static String send(String method, String url, String field, int size) {
        try {
            byte[] body = new byte[size];
            Arrays.fill(body, (byte) 'u');
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url)).timeout(PATIENCE)
                .method(method, size == 0 ? BodyPublishers.noBody() : BodyPublishers.ofByteArray(body));
            if (!field.equals("-")) {
                request.header(field.substring(0, field.indexOf(": ")), field.substring(field.indexOf(": ") + 2));
            }
            // A client of its own has connections of its own.
            HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
            HttpResponse<String> answer = client.send(request.build(), BodyHandlers.ofString());
            List<String> fields = new ArrayList<>();
            answer.headers().map().forEach((name, values) ->
                values.forEach(value -> fields.add("[" + quoted(name) + "," + quoted(value) + "]")));
            return "{\"status\":" + answer.statusCode() + ",\"fields\":[" + String.join(",", fields) + "],\"body\":"
                + quoted(answer.body()) + "}";
        } catch (Exception error) {
            return "{\"error\":" + quoted(error.toString()) + "}";
        }
    }

    private static String quoted(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            if (letter < ' ' || letter == '"' || letter == '\\') {
                quoted.append(String.format("\\u%04x", (int) letter));
            } else {
                quoted.append(letter);
            }
        }
        return quoted.append('"').toString();
    }
}
