/**
 * One who writes to `disk` of a real mount until the daemon dies, and remembers what was written and what a sync acknowledged.
 * Or one who takes and deletes snapshots meanwhile. They run in the program that kills the daemon, so their memory survives.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { fallocate } from '../../src/system/fallocate';
import { SECTOR_SIZE } from '../../src/units';
import { Random } from '../helpers/random';
import { Progress } from './progress';
import { type Stripe, stripesOf } from './territory';
import { FIRST_TAG, fillSectors, type Operation, versionsOf, ZERO } from './versions';

export interface WriterPlan {
  role: 'writer' | 'snapshots';
  mountpoint: string;
  writer: number;
  writers: number;
  seed: number;
  /** Does the session know fallocate? */
  punch: boolean;
  /** Of all rounds of the image: tags never come twice. */
  tagBase: number;
  /** Versions of all sectors when the round begins. */
  start: Int32Array;
  shared: SharedArrayBuffer;
  /** Snapshots that are there. */
  snapshots: string[];
  /** Prefix of new ones. */
  prefix: string;
}

export interface SnapshotEvent {
  kind: 'take' | 'delete';
  name: string;
  /** Operations that must be in it, and the last that may. */
  floor: number[];
  ceiling: number[];
  /** Did the call return well? */
  done: boolean;
}

export interface WriterReport {
  log: Operation[];
  events: SnapshotEvent[];
  syncs: number;
  /** What must never happen. */
  wrong: string[];
}

class Writer {
  readonly log: Operation[] = [];
  readonly wrong: string[] = [];
  syncs = 0;
  private number = 0;
  private readonly random: Random;
  private readonly stripes: Stripe[];
  private readonly versions: Int32Array;
  private readonly buffer = new Uint8Array(512 * SECTOR_SIZE);

  constructor(
    private readonly plan: WriterPlan,
    private readonly progress: Progress,
  ) {
    this.random = new Random(plan.seed);
    this.stripes = stripesOf(plan.writer, plan.writers);
    this.versions = Int32Array.from(plan.start);
  }

  run(): void {
    const disk = path.join(this.plan.mountpoint, 'disk');
    const fd = fs.openSync(disk, 'r+');
    const durable = fs.openSync(disk, fs.constants.O_RDWR | fs.constants.O_DSYNC);
    try {
      while (!this.progress.ending) this.step(fd, durable);
    } finally {
      fs.closeSync(durable);
      fs.closeSync(fd);
    }
  }

  private step(fd: number, durable: number): void {
    const dice = this.random.next();
    if (dice < 0.08) this.sync(() => (this.random.chance(0.5) ? fs.fdatasyncSync(fd) : fs.fsyncSync(fd)));
    else if (dice < 0.11) this.sync(() => this.write(durable));
    else if (dice < 0.16) this.readBack(fd);
    else if (dice < 0.22 && this.plan.punch) this.zero(fd);
    else this.write(fd);
  }

  /** Everything that had returned before is safe when `act` has. What `act` itself writes is too. */
  private sync(act: () => void): void {
    const before = this.progress.completed();
    act();
    before[this.plan.writer] = this.number;
    this.progress.acknowledge(before);
    this.syncs++;
  }

  private range(): Stripe {
    const { first, count } = this.random.pick(this.stripes);
    const skip = this.random.chance(0.3) ? 0 : this.random.below(count);
    return {
      first: first + skip,
      count: this.random.chance(0.3) ? count - skip : this.random.between(1, count - skip),
    };
  }

  private write(fd: number): void {
    const range = this.range();
    const tag = this.plan.tagBase + (this.number + 1) * this.plan.writers + this.plan.writer + FIRST_TAG;
    fillSectors(this.buffer, range.first, range.count, tag);
    this.change(range, tag, () => {
      const length = range.count * SECTOR_SIZE;
      const written = fs.writeSync(fd, this.buffer, 0, length, range.first * SECTOR_SIZE);
      if (written !== length && !this.progress.ending) this.wrong.push(`a write of ${length} bytes wrote ${written}`);
    });
  }

  private zero(fd: number): void {
    const range = this.range();
    const how = this.random.chance(0.5) ? 'punch-hole' : 'zero-range';
    this.change(range, ZERO, () => fallocate(fd, how, range.first * SECTOR_SIZE, range.count * SECTOR_SIZE));
  }

  private change({ first, count }: Stripe, tag: number, act: () => void): void {
    const { writer } = this.plan;
    this.number++;
    this.log.push({ number: this.number, first, count, tag });
    this.progress.begin(writer, this.number);
    act();
    this.progress.complete(writer, this.number);
    this.versions.fill(tag, first, first + count);
  }

  /** What I wrote, and nobody else may, is what I read. */
  private readBack(fd: number): void {
    const { first, count } = this.range();
    const length = count * SECTOR_SIZE;
    if (fs.readSync(fd, this.buffer, 0, length, first * SECTOR_SIZE) !== length) return;
    const found = versionsOf(this.buffer.subarray(0, length), first);
    const at = found.findIndex((version, index) => version !== this.versions[first + index]);
    if (at < 0) return;
    this.wrong.push(`the live disk: sector ${first + at} holds ${found[at]}, written was ${this.versions[first + at]}`);
  }
}

/** Few at a time: every one of them is compared in every round. */
const SNAPSHOTS_MAX = 4;

class SnapshotTaker {
  readonly events: SnapshotEvent[] = [];
  private readonly names: string[];
  private readonly random: Random;

  constructor(
    private readonly plan: WriterPlan,
    private readonly progress: Progress,
  ) {
    this.random = new Random(plan.seed);
    this.names = [...plan.snapshots];
  }

  run(): void {
    for (let index = 0; !this.progress.ending; index++) {
      const full = this.names.length >= SNAPSHOTS_MAX;
      if (full || (this.names.length > 0 && this.random.chance(0.4))) {
        const [name] = this.names.splice(this.random.below(this.names.length), 1);
        this.change('delete', name, (file) => fs.rmdirSync(file));
      } else {
        const name = `${this.plan.prefix}-${index}`;
        this.change('take', name, (file) => fs.mkdirSync(file));
        this.names.push(name);
      }
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, this.random.below(60));
    }
  }

  private change(kind: SnapshotEvent['kind'], name: string, act: (file: string) => void): void {
    const event: SnapshotEvent = { kind, name, floor: this.progress.completed(), ceiling: [], done: false };
    this.events.push(event);
    act(path.join(this.plan.mountpoint, 'snapshots', name));
    event.ceiling = this.progress.begun();
    event.done = true;
    // A snapshot is durable when the call returns, and so is what it holds.
    if (kind === 'take') this.progress.acknowledge(event.floor);
  }
}

function runPlan(plan: WriterPlan): WriterReport {
  const progress = new Progress(plan.shared, plan.writers);
  const writer = new Writer(plan, progress);
  const taker = new SnapshotTaker(plan, progress);
  try {
    (plan.role === 'writer' ? writer : taker).run();
  } catch (error) {
    if (!progress.ending) writer.wrong.push(`a ${plan.role} failed: ${String(error)}`);
  }
  return { log: writer.log, events: taker.events, syncs: writer.syncs, wrong: writer.wrong };
}

if (parentPort !== null) parentPort.postMessage(runPlan(workerData as WriterPlan));
