/** When a worker takes several requests together. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { createSeats, Seats } from '../../../src/fuse/kernel/seats';
import { Spinner } from '../../../src/fuse/kernel/spinner';
import { temporaryDirectory } from '../../helpers/images';

/** A spinner whose source of requests has some or not. */
function setUp(t: ExecutionContext) {
  const fifo = path.join(temporaryDirectory(t), 'fifo');
  execFileSync('mkfifo', [fifo]);
  const fd = fs.openSync(fifo, 'r+');
  t.teardown(() => fs.closeSync(fd));
  const seats = new Seats(createSeats(1, 1));
  const spinner = new Spinner(fd, seats);
  return {
    seats,
    spinner,
    fill: () => void fs.writeSync(fd, 'x'),
    empty: () => void fs.readSync(fd, Buffer.alloc(1)),
    /** Requests that are taken singly until several are expected; as many as `most` if they never are. */
    singles: (most: number) => {
      for (let taken = 0; taken < most; taken++) {
        if (spinner.expectsSeveral()) return taken;
        spinner.spin();
      }
      return most;
    },
  };
}

test('Spinner: several are expected when there was a request at once again and again', (t) => {
  const { fill, empty, singles, spinner } = setUp(t);
  fill();
  const taken = singles(100);
  t.true(taken > 4 && taken < 20, `${taken}`);
  t.true(spinner.expectsSeveral(), 'and as long as there are');
  empty();
  spinner.tookTogether(0, true);
  t.false(spinner.expectsSeveral());
  t.is(singles(100), 100, 'never while there is none');
});

test('Spinner: where few can be taken together it is tried less and less often, but for ever', (t) => {
  const { fill, singles, spinner, seats } = setUp(t);
  fill();
  singles(100);
  const pauses = Array.from({ length: 10 }, () => {
    spinner.tookTogether(2, false);
    return singles(100);
  });
  t.true(pauses[0] < 4, `${pauses}`);
  t.true(pauses[9] >= 32 && pauses[9] < 36, `${pauses}`);
  t.is(seats.together, 0);
  spinner.tookTogether(5, false);
  t.true(spinner.expectsSeveral(), 'at once again when there are many');
  t.is(seats.together, 5);
});
