/**
 * A moment of polling before a worker sleeps in read(2). A program that reads one block after the other sends its next
 * request within microseconds, and waking a worker on a sleepy processor takes longer than serving it. Measured on two cores,
 * 4 KiB random reads a second with one job: 29,500 without polling, 45,000 when the one that polls takes the request, 82,000
 * when it leaves the request to a worker that sleeps:
 *
 *   - The kernel wakes a sleeper for each request. While somebody polls on the other processor, it does so on the processor of
 *     the program that asks, which has nothing else to do until the answer comes: nobody has to be woken across processors.
 *     So whoever polls leaves a new request to the sleeper for a moment, and takes it if it is still there.
 *   - One worker of a mount polls at a time: more would only take the processor from whom they wait for.
 *   - It polls for less than 0.1 ms after a request: an idle mount costs nothing.
 *   - While the queue is never empty polling is a wasted system call, so it is left out more and more often, and nothing is
 *     left to others. Once it is empty, several programs have their answers and need the processors to ask again: whoever polls
 *     then is in their way, so it soon sleeps (8 jobs 1.1 times, libaio with 16 at a time 1.2 times as fast).
 */
import { ReadablePoll } from '../../system/poll';
import type { Seats } from './seats';

/** About 80 us: as long as a reader on a sleepy processor takes to come back, shorter than the time slice of anybody else. */
const POLLS = 200;
/** The same after a queue. */
const QUEUE_POLLS = 5;
/** For so many polls, about 3 us, a new request is left to a worker that sleeps. */
const PATIENCE = 5;
/** Most requests that are taken without polling. */
const SKIP_MAX = 16;
/** As many taken together are worth it. */
const SEVERAL = 3;
/** Most requests that are taken singly before several are tried again. */
const REST_MAX = 32;

export class Spinner {
  private readonly poll: ReadablePoll;
  private skip = 0;
  /** How many requests to take without polling when the next is there at once: doubled each time, so that it takes a queue. */
  private skipNext = 1;
  /** How many requests to take singly, and how many the next time. */
  private rest = 0;
  private nextRest = 1;

  constructor(
    fd: number,
    private readonly seats: Seats,
  ) {
    this.poll = new ReadablePoll(fd);
  }

  get isAsked(): boolean {
    return this.poll.ready();
  }

  /**
   * There was a request at once for a while, so that there is a queue, and it pays to take several of it together. Where it does not,
   * this counts the requests until it is tried again: it is asked once before each.
   */
  expectsSeveral(): boolean {
    if (this.skip === 0 || this.skipNext < SKIP_MAX) return false;
    if (this.rest === 0) return true;
    this.rest--;
    return false;
  }

  /**
   * Two programs that wait for one block each look like a queue to two workers, but have no requests to take together: as long as few
   * are there, it is tried less and less often.
   * @param count how many requests were taken together; @param isEmpty there was none at all: the queue has ended
   */
  tookTogether(count: number, isEmpty: boolean): void {
    if (isEmpty) this.skip = 0;
    if (count >= SEVERAL) {
      this.nextRest = 1;
      this.seats.countTogether(count);
      return;
    }
    this.rest = this.nextRest;
    this.nextRest = Math.min(2 * this.nextRest, REST_MAX);
  }

  /** Returns when there is a request, or when it is better to sleep. */
  spin(): void {
    if (this.skip > 0) {
      this.skip--;
      return;
    }
    if (!this.seats.startPolling()) return;
    const isQueue = this.skipNext > 1;
    const polls = this.pollFor(isQueue ? QUEUE_POLLS : POLLS, !isQueue && this.seats.severalWait ? PATIENCE : 0);
    this.seats.endPolling();
    if (polls > 0) {
      this.skipNext = 1;
      return;
    }
    this.skip = this.skipNext;
    this.skipNext = Math.min(2 * this.skipNext, SKIP_MAX);
  }

  /** @param most polls in vain. @returns how often it polled in vain since the last request: 0 when one was there from the beginning */
  private pollFor(most: number, patience: number): number {
    let polls = 0;
    let seen = 0;
    for (;;) {
      if (this.poll.ready()) {
        if (polls === 0 || seen === patience) return polls;
        seen++;
      } else if (seen > 0) {
        // The sleeper has taken it, and the next may follow soon.
        seen = 0;
        polls = 1;
      } else if (++polls >= most) return polls;
    }
  }
}
