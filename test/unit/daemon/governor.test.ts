import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setImmediate as soon } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import test from 'ava';
import { BUSY_SEATS, CALM_SEATS, COLD_SEATS, Governor, QUEUE_SEATS, threadsOnDisk } from '../../../src/daemon/governor';
import { createSeats, DISK, Seats } from '../../../src/fuse/kernel/seats';
import { temporaryDirectory } from '../../helpers/images';
import { openRing } from '../../helpers/rings';

const WORKERS = Math.max(8, 2 * BUSY_SEATS);
/** More looks without anybody on the disk than it takes until all is as at first. */
const CALM_LOOKS = 25;

/** A mount with all seats taken, `onDisk` threads of which wait for the disk. */
function setUp() {
  const seats = new Seats(createSeats(CALM_SEATS, BUSY_SEATS));
  seats.sit();
  const state = { onDisk: 0 };
  const governor = new Governor(seats, WORKERS, () => state.onDisk);
  const look = () => governor.look(WORKERS);
  const take = (turns: number, reads: number) => {
    for (let turn = 0; turn < turns; turn++) {
      seats.startReading();
      seats.endReading(reads / turns);
    }
  };
  return { seats, state, governor, look, take };
}

test('Governor: while the page cache answers nothing changes', (t) => {
  const { seats, governor, look } = setUp();
  for (let i = 0; i < CALM_LOOKS; i++) t.false(look());
  t.true(governor.isCalm);
  t.is(seats.limit, CALM_SEATS);
});

test('Governor: all sit when more than half wait for the disk, and more workers would do more', (t) => {
  const { seats, state, look } = setUp();
  state.onDisk = WORKERS;
  t.false(look(), 'the first look lets a few show whether they can take many');
  t.is(seats.disk, DISK.FAST);
  t.is(seats.limit, BUSY_SEATS);
  t.true(look());
  t.is(seats.limit, WORKERS);
});

test('Governor: few sit while each takes many reads, again also after all sat', (t) => {
  const { seats, state, look, take } = setUp();
  seats.setDisk(DISK.FAST);
  take(10, 160);
  t.false(look());
  t.is(seats.limit, BUSY_SEATS);
  take(10, 10);
  look();
  t.is(seats.limit, WORKERS, 'one at a time');
  state.onDisk = 1;
  take(100, (100 * (4 * BUSY_SEATS) * 0.9) / WORKERS);
  look();
  t.is(seats.limit, WORKERS, 'too few for a few workers');
  take(100, 100 * 5);
  look();
  t.is(seats.limit, BUSY_SEATS);
});

test('Governor: a pause between two bursts changes nothing, a disk that does not answer lets all sit', (t) => {
  const { seats, state, look, take } = setUp();
  seats.setDisk(DISK.FAST);
  take(10, 160);
  look();
  look();
  t.is(seats.limit, BUSY_SEATS);
  state.onDisk = 1;
  look();
  t.is(seats.limit, WORKERS);
});

test('Governor: all sit while the disk is slow, however many reads each takes', (t) => {
  const { seats, state, look, take } = setUp();
  state.onDisk = 1;
  seats.setDisk(DISK.SLOW);
  take(10, 160);
  look();
  t.is(seats.limit, WORKERS);
  t.is(seats.disk, DISK.SLOW);
});

test('Governor: a second without anybody on the disk ends all that, again and again', (t) => {
  const { seats, governor, look } = setUp();
  for (let round = 0; round < 3; round++) {
    // A worker may say so again before the next look.
    seats.setDisk(DISK.FAST);
    seats.allow(WORKERS);
    let looks = 0;
    for (; !governor.isCalm && looks < CALM_LOOKS; looks++) look();
    t.is(looks, 20, `round ${round}`);
  }
});

/** A mount that nobody has asked for anything, and whoever sits at first. */
function setUpCold() {
  const seats = new Seats(createSeats(COLD_SEATS, BUSY_SEATS));
  const state = { onDisk: 0 };
  const governor = new Governor(seats, WORKERS, () => state.onDisk);
  seats.sit();
  seats.startWaiting();
  /** So many requests are served at once, and the next is waited for. */
  const ask = (count: number) => {
    for (let request = 0; request < count; request++) {
      seats.endWaiting();
      seats.startWaiting();
    }
  };
  return { seats, state, governor, ask, look: () => governor.look(WORKERS) };
}

test('Governor: one sits until thousands of requests have come', (t) => {
  const { seats, ask, look } = setUpCold();
  for (let i = 0; i < CALM_LOOKS; i++) look();
  ask(1000);
  look();
  t.is(seats.limit, COLD_SEATS);
  ask(40_000);
  look();
  t.is(seats.limit, CALM_SEATS);
});

test('Governor: one sits for a few seconds with requests, however many these are', (t) => {
  const { seats, ask, look } = setUpCold();
  for (let i = 0; i < 19; i++) {
    ask(1);
    look();
    t.is(seats.limit, COLD_SEATS);
    look();
  }
  ask(1);
  look();
  t.is(seats.limit, CALM_SEATS);
});

test('Governor: others may sit when the only one who sits is held up by a request', (t) => {
  const { seats, ask, look } = setUpCold();
  const busyLook = (count: number) => {
    ask(count);
    seats.endWaiting();
    look();
    seats.startWaiting();
  };
  for (let i = 0; i < 5; i++) busyLook(100);
  busyLook(1);
  busyLook(100);
  t.is(seats.limit, COLD_SEATS, 'once is an accident');
  busyLook(1);
  busyLook(1);
  t.is(seats.limit, CALM_SEATS);
});

test('Governor: others may sit when the only one who sits stands because of a long flush', (t) => {
  const { seats, ask, look } = setUpCold();
  ask(100);
  look();
  seats.endWaiting();
  seats.stepAside(false, { isAsked: false });
  for (let i = 0; i < 2; i++) look();
  t.is(seats.limit, CALM_SEATS);
});

test('Governor: a thread on the disk beside the only one who sits lets others in when it stays there', (t) => {
  const { seats, state, ask, look } = setUpCold();
  state.onDisk = 1;
  ask(100);
  seats.endWaiting();
  look();
  t.is(seats.limit, COLD_SEATS);
  ask(100);
  look();
  t.is(seats.limit, CALM_SEATS);
  t.is(seats.disk, DISK.NONE);
});

test('Governor: it can be told that no request may keep the others waiting any more', (t) => {
  const { seats, governor } = setUpCold();
  governor.endCold();
  t.is(seats.limit, CALM_SEATS);
  seats.allow(WORKERS);
  governor.endCold();
  t.is(seats.limit, WORKERS);
});

test('Governor: few sit while requests are taken together from a queue, and as many as before once they are not', (t) => {
  const { seats, governor, ask, look } = setUpCold();
  ask(40_000);
  look();
  t.is(seats.limit, CALM_SEATS);
  for (let i = 0; i < CALM_LOOKS; i++) {
    ask(2000);
    seats.countTogether(1200);
    look();
    t.is(seats.limit, QUEUE_SEATS);
    t.true(governor.isCalm);
  }
  ask(2000);
  seats.countTogether(100);
  look();
  t.is(seats.limit, CALM_SEATS);
});

test('Governor: from the first requests on few sit when these make a queue', (t) => {
  const { seats, ask, look } = setUpCold();
  ask(40_000);
  seats.countTogether(18_000);
  look();
  t.is(seats.limit, QUEUE_SEATS);
});

test('Governor: a queue that one worker is held up before gets others at the next look', (t) => {
  const { seats, state, ask, look } = setUpCold();
  const queue = () => {
    ask(40_000);
    seats.countTogether(18_000);
    look();
    t.is(seats.limit, QUEUE_SEATS);
  };
  queue();
  ask(3);
  seats.countTogether(3);
  look();
  t.is(seats.limit, CALM_SEATS, 'by a request that takes long');
  queue();
  state.onDisk = 1;
  ask(40_000);
  seats.countTogether(18_000);
  seats.endWaiting();
  look();
  t.is(seats.limit, CALM_SEATS, 'by the disk');
});

/** Reads from a FIFO through a ring. */
const RING_READER = `
  const { workerData, parentPort } = require('worker_threads');
  const { IoRing } = require(workerData.module);
  const { addressOf, alignedBuffer } = require(workerData.buffers);
  const memory = alignedBuffer(4096, 0);
  const ring = IoRing.open(2);
  ring.pushRead(workerData.fd, addressOf(memory), 5, 0, false);
  ring.run();
  ring.close();
  parentPort.postMessage(memory.toString('latin1', 0, 5));
`;

test.serial('threadsOnDisk() counts a worker whose reads in a ring have not come', async (t) => {
  const ring = openRing(t, 2);
  if (ring === undefined) return;
  ring.close();
  const fifo = path.join(temporaryDirectory(t), 'fifo');
  execFileSync('mkfifo', [fifo]);
  const fd = fs.openSync(fifo, 'r+');
  t.teardown(() => fs.closeSync(fd));
  t.is(threadsOnDisk(), 0);
  const [module, buffers] = ['io-ring', 'aligned-buffer'].map((name) => require.resolve(`../../../src/system/${name}`));
  const worker = new Worker(RING_READER, { eval: true, workerData: { fd, module, buffers }, trackUnmanagedFds: false });
  const came = new Promise((resolve) => worker.once('message', resolve));
  const end = Date.now() + 20_000;
  while (threadsOnDisk() === 0 && Date.now() < end) await soon();
  t.is(threadsOnDisk(), 1);
  fs.writeSync(fd, 'bytes');
  t.is(await came, 'bytes');
});
