package keyfold.peer;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.api.RecordMetadata;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * Keeps the events of its partition until there are {@code CAPACITY} of them or a punctuation
 * comes, then runs them as waves, writes each key's state once, and forwards in their order.
 *
 * <p>The buffer is in memory only, and to Streams an event is done when {@link #process} returned:
 * a commit would pass events whose predictions nobody made yet. {@link HeldBackCommits} commits no
 * further than the oldest event in the buffer; so a crash, a rebalance or a stop loses none, they
 * come again. As with {@link PerEvent} events since the last commit may then be folded twice into
 * the states (at least once); exactly_once_v2 prevents it.
 */
final class Buffered implements Processor<byte[], float[], byte[], Prediction> {

  static final int CAPACITY = 2048;

  /** How long an event may wait; as long as Streams lets its producer wait by default. */
  private static final Duration AT_MOST = Duration.ofMillis(100);

  private final Waves waves;
  private final HeldBackCommits commits;
  private final List<Event> events = new ArrayList<>(CAPACITY);
  private ProcessorContext<byte[], Prediction> context;
  private KeyValueStore<byte[], byte[]> states;
  private TopicPartition partition;

  Buffered(Step step, HeldBackCommits commits) {
    this.waves = new Waves(step, Peer.ROWS);
    this.commits = commits;
  }

  @Override
  public void init(ProcessorContext<byte[], Prediction> context) {
    this.context = context;
    states = context.getStateStore(Peer.STATES);
    context.schedule(AT_MOST, PunctuationType.WALL_CLOCK_TIME, now -> flush());
  }

  @Override
  public void process(Record<byte[], float[]> event) {
    if (event.key() == null || event.value() == null) {
      return; // as the DSL does with a record without a key
    }
    RecordMetadata about = context.recordMetadata().orElseThrow();
    if (events.isEmpty()) {
      partition = new TopicPartition(about.topic(), about.partition());
      commits.holdAt(partition, about.offset());
    }
    events.add(new Event(event.key(), event.value(), event.timestamp(), about.offset()));
    if (events.size() == CAPACITY) {
      flush();
    }
  }

  @Override
  public void close() {
    events.clear(); // they were not committed: the next owner of the partition gets them
    if (partition != null) {
      commits.release(partition);
    }
  }

  private void flush() {
    if (events.isEmpty()) {
      return;
    }
    waves.run(events, states);
    String topic = partition.topic();
    int number = partition.partition();
    for (Event event : events) {
      Prediction prediction = new Prediction(topic, number, event.offset, event.output);
      context.forward(new Record<>(event.key, prediction, event.timestamp));
    }
    events.clear();
    commits.release(partition);
  }
}
