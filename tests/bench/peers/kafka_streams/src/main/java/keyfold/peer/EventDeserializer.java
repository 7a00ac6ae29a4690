package keyfold.peer;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadFeature;
import java.io.IOException;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.serialization.Deserializer;

/**
 * Decodes a JSON event to the model's columns by Jackson's streaming parser, without a tree or an
 * object in between. What is no event is an error that Streams logs, and goes on.
 */
final class EventDeserializer implements Deserializer<float[]> {

  private final JsonFactory factory =
      JsonFactory.builder().enable(StreamReadFeature.USE_FAST_DOUBLE_PARSER).build();
  private final Map<String, Integer> columns = new HashMap<>();

  EventDeserializer(List<String> features) {
    for (String name : features) {
      columns.put(name, columns.size());
    }
  }

  @Override
  public float[] deserialize(String topic, byte[] bytes) {
    if (bytes == null) {
      return null;
    }
    try (JsonParser parser = factory.createParser(bytes)) {
      return decode(parser);
    } catch (IOException error) {
      throw new SerializationException("an event of " + topic + " is no JSON", error);
    }
  }

  private float[] decode(JsonParser parser) throws IOException {
    float[] values = new float[columns.size()];
    int found = 0;
    if (parser.nextToken() != JsonToken.START_OBJECT) {
      throw new SerializationException("event: expected a JSON object");
    }
    for (String name = parser.nextFieldName(); name != null; name = parser.nextFieldName()) {
      JsonToken token = parser.nextToken();
      Integer column = columns.get(name);
      if (column == null) {
        parser.skipChildren();
      } else if (!token.isNumeric()) {
        throw new SerializationException("event: field " + name + ": expected a number");
      } else {
        values[column] = parser.getFloatValue();
        found++;
      }
    }
    if (found != values.length) {
      throw new SerializationException(
          "event: expected " + values.length + " fields, found " + found);
    }
    return values;
  }
}
