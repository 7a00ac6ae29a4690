package keyfold.peer;

import java.util.HashMap;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerGroupMetadata;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.streams.KafkaClientSupplier;

/**
 * Streams' clients, made so that no commit passes a partition's oldest event that is still held in
 * a buffer. KafkaClientSupplier is the documented place to put in clients of one's own; Streams'
 * public API has no call before a commit in which a processor could empty its buffer, and a
 * changelogged store for the buffer costs a store operation per event.
 *
 * <p>All calls come from the one stream thread, so nothing here is locked.
 */
final class HeldBackCommits implements KafkaClientSupplier {

  private final Map<TopicPartition, Long> held = new HashMap<>();

  /** From now on commits of the partition stop at {@code offset}, the next one to be read. */
  void holdAt(TopicPartition partition, long offset) {
    held.put(partition, offset);
  }

  void release(TopicPartition partition) {
    held.remove(partition);
  }

  @Override
  public Consumer<byte[], byte[]> getConsumer(Map<String, Object> config) {
    return new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer()) {
      @Override
      public void commitSync(Map<TopicPartition, OffsetAndMetadata> offsets) {
        super.commitSync(heldBack(offsets));
      }
    };
  }

  @Override
  public Producer<byte[], byte[]> getProducer(Map<String, Object> config) {
    return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer()) {
      @Override
      public void sendOffsetsToTransaction(
          Map<TopicPartition, OffsetAndMetadata> offsets, ConsumerGroupMetadata group) {
        super.sendOffsetsToTransaction(heldBack(offsets), group);
      }
    };
  }

  @Override
  public Admin getAdmin(Map<String, Object> config) {
    return Admin.create(config);
  }

  @Override
  public Consumer<byte[], byte[]> getRestoreConsumer(Map<String, Object> config) {
    return new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
  }

  @Override
  public Consumer<byte[], byte[]> getGlobalConsumer(Map<String, Object> config) {
    return getRestoreConsumer(config);
  }

  private Map<TopicPartition, OffsetAndMetadata> heldBack(
      Map<TopicPartition, OffsetAndMetadata> offsets) {
    Map<TopicPartition, OffsetAndMetadata> allowed = new HashMap<>(offsets);
    allowed.replaceAll(
        (partition, wanted) -> {
          Long oldest = held.get(partition);
          return oldest == null || oldest >= wanted.offset()
              ? wanted
              : new OffsetAndMetadata(oldest, wanted.leaderEpoch(), wanted.metadata());
        });
    return allowed;
  }
}
