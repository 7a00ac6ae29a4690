package keyfold.peer;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.StreamWriteFeature;
import com.fasterxml.jackson.core.io.SerializedString;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.util.List;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.serialization.Serializer;

/** Writes {"output": {name: number, ...}, "about": "topic:partition:offset"}, by Jackson. */
final class PredictionSerializer implements Serializer<Prediction> {

  private static final SerializedString OUTPUT = new SerializedString("output");
  private static final SerializedString ABOUT = new SerializedString("about");

  private final JsonFactory factory =
      JsonFactory.builder().enable(StreamWriteFeature.USE_FAST_DOUBLE_WRITER).build();
  private final SerializedString[] names;
  private final ByteArrayOutputStream bytes = new ByteArrayOutputStream(128); // of one thread only

  PredictionSerializer(List<String> names) {
    this.names = names.stream().map(SerializedString::new).toArray(SerializedString[]::new);
  }

  @Override
  public byte[] serialize(String topic, Prediction prediction) {
    bytes.reset();
    try (JsonGenerator json = factory.createGenerator(bytes)) {
      json.writeStartObject();
      json.writeFieldName(OUTPUT);
      json.writeStartObject();
      for (int i = 0; i < names.length; i++) {
        json.writeFieldName(names[i]);
        json.writeNumber(prediction.values()[i]);
      }
      json.writeEndObject();
      json.writeFieldName(ABOUT);
      json.writeString(
          prediction.topic() + ":" + prediction.partition() + ":" + prediction.offset());
      json.writeEndObject();
    } catch (IOException error) {
      throw new SerializationException("a prediction could not be written", error);
    }
    return bytes.toByteArray();
  }
}
