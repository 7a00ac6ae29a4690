package keyfold.peer;

import ai.onnxruntime.OrtException;
import java.io.IOException;
import java.time.Duration;
import java.util.Optional;
import java.util.Set;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.StreamPartitioner;
import org.apache.kafka.streams.processor.api.ProcessorSupplier;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * Kafka Streams as a peer of keyfold's benchmark: one stream thread, the state of each key in a
 * persistent (RocksDB) store with its changelog, the model by ONNX Runtime's Java API.
 */
final class Peer {

  static final String STATES = "states";
  static final int ROWS = 512; // of one session run

  private Peer() {}

  public static void main(String[] arguments) throws Exception {
    Settings settings = Settings.fromEnvironment();
    if (settings.warmupS() > 0) {
      Warmup.run(settings);
    }
    KafkaStreams streams = streams(settings);
    Runtime.getRuntime()
        .addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10)), "stop"));
    streams.start();
  }

  static KafkaStreams streams(Settings settings) throws IOException, OrtException {
    Manifest manifest = Manifest.read(settings.manifest());
    Step step = new Step(settings, manifest, settings.buffered() ? ROWS : 1);
    HeldBackCommits commits = new HeldBackCommits();
    // Processors of all partitions run in the one stream thread, so that they can share the graph.
    ProcessorSupplier<byte[], float[], byte[], Prediction> processors =
        settings.buffered() ? () -> new Buffered(step, commits) : () -> new PerEvent(step);
    KafkaStreams streams =
        new KafkaStreams(
            topology(settings, manifest, processors), Configuration.of(settings), commits);
    streams.setUncaughtExceptionHandler(
        error -> {
          error.printStackTrace();
          // Not System.exit: it waits for the shutdown hook, which waits for this thread.
          Runtime.getRuntime().halt(1);
          return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
    return streams;
  }

  private static Topology topology(
      Settings settings,
      Manifest manifest,
      ProcessorSupplier<byte[], float[], byte[], Prediction> processors) {
    StoreBuilder<KeyValueStore<byte[], byte[]>> states =
        Stores.keyValueStoreBuilder(
            Stores.persistentKeyValueStore(STATES), Serdes.ByteArray(), Serdes.ByteArray());
    if (settings.buffered()) {
      // "Record caches in the Processor API": RocksDB and the changelog then see a key's last
      // state of a commit interval only. `per_event` has what the builder gives unasked: no cache.
      states = states.withCachingEnabled();
    }
    StreamPartitioner<byte[], Prediction> samePartition =
        (topic, key, prediction, partitions) -> Optional.of(Set.of(prediction.partition()));
    return new Topology()
        .addSource(
            "events",
            new ByteArrayDeserializer(),
            new EventDeserializer(settings.features()),
            settings.input())
        .addProcessor("fold", processors, "events")
        .addStateStore(states, "fold")
        .addSink(
            "predictions",
            settings.output(),
            new ByteArraySerializer(),
            new PredictionSerializer(manifest.outputs()),
            samePartition,
            "fold");
  }
}
