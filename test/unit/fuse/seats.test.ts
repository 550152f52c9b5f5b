/** Which workers take requests: real threads that park and sit down. */
import { once } from 'node:events';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import { createSeats, DISK, Seats } from '../../../src/fuse/kernel/seats';
import { longWait, onLongWait } from '../../../src/system/long-wait';

const ASKED = { isAsked: true };

/** Another thread that wants a seat: `sits` resolves when it has one. */
function rival(t: ExecutionContext, memory: SharedArrayBuffer): { sits: Promise<unknown>; leave(): Promise<unknown> } {
  const worker = new Worker(path.join(__dirname, 'seats-worker.js'), { workerData: memory });
  t.teardown(() => worker.terminate());
  return {
    sits: once(worker, 'message'),
    leave: () => {
      const gone = once(worker, 'exit');
      worker.postMessage('leave');
      return gone;
    },
  };
}

/** Words of the seats' memory that only tests look at. */
function look(memory: SharedArrayBuffer): { parked(): number; wakeups(): number } {
  const words = new Int32Array(memory);
  return { parked: () => Atomics.load(words, 2), wakeups: () => Atomics.load(words, 3) };
}

test('Seats: who stands up lets a parked worker work', async (t) => {
  const memory = createSeats(1, 4);
  const seats = new Seats(memory);
  seats.sit();
  const other = rival(t, memory);
  seats.stand();
  await other.sits;
  await other.leave();
  seats.sit();
  t.pass();
});

test('Seats: a flush does not keep the other workers from serving', async (t) => {
  const memory = createSeats(1, 4);
  const seats = new Seats(memory);
  seats.sit();
  onLongWait({ begins: (forOthers) => seats.stepAside(forOthers, ASKED), ends: () => seats.stepBack() });
  t.teardown(() => onLongWait(undefined));
  const other = rival(t, memory);
  // The body of a long wait is synchronous in a worker; here it goes on while the other thread sits down.
  const sits = longWait(() => other.sits);
  seats.stand();
  await sits;
  await other.leave();
  t.pass();
});

test('Seats: a flush wakes nobody while another worker serves a request, a wait for others does', async (t) => {
  const memory = createSeats(2, 4);
  const seats = new Seats(memory);
  seats.sit();
  const other = rival(t, memory);
  await other.sits;
  const third = rival(t, memory);
  const { parked, wakeups } = look(memory);
  while (parked() === 0) await new Promise(setImmediate);
  const before = wakeups();
  seats.stepAside(false, ASKED);
  t.is(wakeups(), before, 'a parked worker was woken for a flush');
  seats.stepBack();
  seats.stepAside(true, ASKED);
  await third.sits;
  seats.stepBack();
  seats.stand();
  await Promise.all([other.leave(), third.leave()]);
});

test('Seats: the flush of the only one who sits wakes another if somebody asks already', async (t) => {
  const memory = createSeats(1, 4);
  const seats = new Seats(memory);
  seats.sit();
  const other = rival(t, memory);
  const { parked, wakeups } = look(memory);
  while (parked() === 0) await new Promise(setImmediate);
  const before = wakeups();
  seats.stepAside(false, { isAsked: false });
  t.is(wakeups(), before, 'a parked worker was woken, and there is nothing to do');
  seats.stepBack();
  seats.stepAside(false, { isAsked: true });
  await other.sits;
  await other.leave();
  seats.stepBack();
  seats.stand();
});

test('Seats: who stands up because of one too many wakes nobody', async (t) => {
  const memory = createSeats(2, 4);
  const seats = new Seats(memory);
  seats.sit();
  const other = rival(t, memory);
  await other.sits;
  seats.stepAside(true, ASKED);
  const third = rival(t, memory);
  await third.sits;
  seats.stepBack();
  const fourth = rival(t, memory);
  const { parked, wakeups } = look(memory);
  while (parked() === 0) await new Promise(setImmediate);
  const before = wakeups();
  seats.stand();
  t.is(wakeups(), before, 'a parked worker was woken, and there is no seat for it');
  await other.leave();
  await fourth.sits;
  await Promise.all([third.leave(), fourth.leave()]);
});

/** Eight reads, one of which is timed. */
function readSlowly(seats: Seats, ms: number): void {
  for (let read = 0; read < 8; read++) readTimed(seats, ms);
}

/** The time of the seats that are tested, ms: a busy machine would make a read slow that is not. */
let clock = 1;
const now = (): number => clock;

/** @param ms how long it takes */
function readTimed(seats: Seats, ms: number): void {
  const began = seats.startRead(4096);
  clock += ms;
  seats.endRead(began);
}

/** Reads that begin together: the first waits for the disk, the others have their data by then. */
function readTogether(seats: Seats, ms: number): void {
  seats.startReading();
  readTimed(seats, ms);
  for (let read = 1; read < 16; read++) readTimed(seats, 0);
  seats.endReading(16);
}

test('Seats: reads that take long let more workers sit, two in a row', (t) => {
  const memory = createSeats(1, 4);
  const [seats, others] = [new Seats(memory, () => 100, now), new Seats(memory)];
  readSlowly(seats, 1);
  t.is(others.limit, 1);
  readSlowly(seats, 1);
  t.is(others.limit, 4);
  t.is(others.disk, DISK.NONE);
});

test('Seats: reads that take long and read blocks are taken together', (t) => {
  const memory = createSeats(1, 4);
  let blocks = 100;
  const [seats, others] = [new Seats(memory, () => blocks++, now), new Seats(memory)];
  readSlowly(seats, 1);
  t.is(others.disk, DISK.NONE);
  readSlowly(seats, 1);
  t.is(others.disk, DISK.FAST);
  t.is(others.limit, 4);
});

test('Seats: reads that wait for a slow disk are noticed by all, two in a row', (t) => {
  const memory = createSeats(1, 4);
  const [seats, others] = [new Seats(memory, () => 100, now), new Seats(memory)];
  others.setDisk(DISK.FAST);
  readTogether(seats, 5);
  readTogether(seats, 1);
  readTogether(seats, 5);
  t.is(others.disk, DISK.FAST);
  readTogether(seats, 5);
  t.is(others.disk, DISK.SLOW);
  t.is(others.limit, 1);
});

test('Seats: all may be let in', async (t) => {
  const memory = createSeats(1, 4);
  const seats = new Seats(memory);
  seats.sit();
  const others = [rival(t, memory), rival(t, memory)];
  seats.allow(3);
  await Promise.all(others.map(({ sits }) => sits));
  await Promise.all(others.map(({ leave }) => leave()));
  t.is(seats.limit, 3);
});

test('Seats: whoever reads from the disk is counted', (t) => {
  const memory = createSeats(2, 4);
  const [one, other] = [new Seats(memory), new Seats(memory)];
  one.startReading();
  other.startReading();
  t.is(one.reading, 2);
  other.endReading(5);
  t.is(one.reading, 1);
  one.endReading(2);
  t.deepEqual(one.turns, { count: 2, reads: 7 });
});

test('Seats: a large read is no sign of a slow disk', (t) => {
  const seats = new Seats(createSeats(1, 4));
  for (let read = 0; read < 64; read++) t.is(seats.startRead(1024 * 1024), 0);
});

test('Seats: the one too many gives its seat away between two requests', async (t) => {
  const memory = createSeats(2, 4);
  const seats = new Seats(memory);
  seats.sit();
  const other = rival(t, memory);
  await other.sits;
  t.true(seats.allBusy);
  seats.startWaiting();
  t.false(seats.allBusy);
  seats.endWaiting();
  const third = rival(t, memory);
  seats.stand();
  await third.sits;
  await Promise.all([other.leave(), third.leave()]);
  t.false(seats.allBusy);
});

test('Seats: reads that were made at once tell of the disk only when blocks were read', (t) => {
  let ms = 1000;
  let blocks = 7;
  const seats = new Seats(
    createSeats(1, 4),
    () => blocks,
    () => ms,
  );
  const read = (takes: number, read: number) => {
    const began = seats.startReads();
    ms += takes;
    blocks += read;
    seats.endReads(began);
  };
  read(0.2, 0);
  for (let round = 0; round < 5; round++) read(0.2, 0);
  t.is(seats.disk, DISK.NONE);
  t.is(seats.limit, 1, 'the processors are busy, and more workers would only take turns');
  read(0.2, 8);
  read(0.05, 8);
  read(0.2, 8);
  t.is(seats.disk, DISK.NONE, 'not two in a row');
  read(0.2, 8);
  t.is(seats.disk, DISK.FAST);
  t.is(seats.limit, 4);
});
