/**
 * kill -9 of a real daemon while it reverts the disk to a snapshot. Then the disk is, as a whole, what the snapshot is or what it was
 * before, every snapshot is unchanged, and a revert that was acknowledged is never undone.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import { type LaunchedDaemon, launchDaemon } from '../../src/daemon/launch';
import { unmount } from '../../src/fuse/unmount';
import { SECTOR_SIZE } from '../../src/units';
import { checkFile, repairFile } from '../helpers/images';
import type { Random } from '../helpers/random';
import { daemonConfig, endOf, letGo } from '../mount/cli';
import { program } from './kill';
import { IMAGE_KINDS, type ImageKind, type PreparedImage, prepareImage, removeImages } from './kill-images';
import { closeDead, type RevertAnswer, type RevertRequest } from './revert-worker';
import { DISK_SECTORS } from './territory';
import { Expectation, FIRST_TAG, fillSectors, type Operation, versionsOf } from './versions';

/** Those that can have snapshots. */
export const REVERT_KINDS: readonly ImageKind[] = [
  ...IMAGE_KINDS.filter(({ snapshots }) => snapshots),
  {
    name: 'qcow2 version 2, with snapshots',
    format: 'qcow2',
    clusterSizes: [512, 4096, 65536],
    options: ['compat=0.10'],
    snapshots: true,
  },
];

export interface RevertCounts {
  rounds: number;
  forced: number;
  /** Answered before the daemon died. */
  acknowledged: number;
  /** Asked for, and the daemon died before it answered: found done, found not done. */
  cutDone: number;
  cutUndone: number;
  /** Sectors that no sync covered. */
  uncertain: number;
  checkedByQemu: number;
  repaired: number;
}

export function noReverts(): RevertCounts {
  return {
    rounds: 0,
    forced: 0,
    acknowledged: 0,
    cutDone: 0,
    cutUndone: 0,
    uncertain: 0,
    checkedByQemu: 0,
    repaired: 0,
  };
}

export interface RevertSettings {
  directory: string;
  kind: ImageKind;
  random: Random;
  rounds: number;
  qemu: boolean;
}

const SNAPSHOTS = 3;
const RUN_SECTORS_MAX = 300;
const NATIVE_CHANCE = 0.15;

/** What a revert may leave. */
interface Outcome {
  done: Expectation;
  undone: Expectation;
  acknowledged: boolean;
}

export class RevertedImage {
  readonly counts = noReverts();
  readonly image: PreparedImage;
  private readonly mountpoint: string;
  private readonly disk: string;
  private readonly snapshots = new Map<string, Int32Array>();
  private readonly asked = new Int32Array(new SharedArrayBuffer(8));
  private readonly worker = new Worker(path.join(__dirname, 'revert-worker.js'), { workerData: this.asked });
  private readonly buffer = new Uint8Array(RUN_SECTORS_MAX * SECTOR_SIZE);
  private versions: Int32Array;
  private tag = FIRST_TAG;
  /** How long a revert takes here, ms. */
  private usualMs = 0;

  constructor(private readonly settings: RevertSettings) {
    const { directory, kind, random } = settings;
    this.mountpoint = path.join(directory, 'mnt');
    this.disk = path.join(this.mountpoint, 'disk');
    fs.mkdirSync(this.mountpoint, { recursive: true });
    this.image = prepareImage(directory, kind, random);
    this.versions = this.image.versions;
  }

  /** Throws with a line that says what is wrong. */
  async live(): Promise<void> {
    try {
      await new Promise((resolve) => this.worker.once('message', resolve));
      await this.prepare();
      for (let round = 0; round < this.settings.rounds; round++) await this.round(round);
      const daemon = await this.mount();
      this.compareMount('after the last round');
      await letGo(this.mountpoint);
      await endOf(daemon);
      this.check();
      removeImages(this.settings.directory);
    } finally {
      await this.worker.terminate();
    }
  }

  /** Takes the snapshots, and measures a revert that nobody cuts off. */
  private async prepare(): Promise<void> {
    const daemon = await this.mount();
    for (let index = 0; index < SNAPSHOTS; index++) {
      const fd = fs.openSync(this.disk, 'r+');
      for (const { first, count, tag } of this.write(fd, 12, 0)) this.versions.fill(tag, first, first + count);
      fs.closeSync(fd);
      const name = `s${index}`;
      fs.mkdirSync(path.join(this.mountpoint, 'snapshots', name));
      this.snapshots.set(name, Int32Array.from(this.versions));
    }
    const { ms, error } = await this.ask({ file: this.revertFile('s0'), word: 'force' });
    if (error !== undefined) throw new Error(`the first revert: ${error}`);
    this.usualMs = ms;
    this.versions = this.snapshots.get('s0') ?? this.versions;
    this.compareMount('after the first revert');
    await letGo(this.mountpoint);
    await endOf(daemon);
  }

  private async round(round: number): Promise<void> {
    const { random } = this.settings;
    const daemon = await this.mount(random.chance(NATIVE_CHANCE) ? 'native' : 'kernel');
    this.compareMount(`round ${round}`);
    const fd = fs.openSync(this.disk, 'r+');
    const synced = random.between(1, 8);
    const log = this.write(fd, synced, 0);
    fs.fsyncSync(fd);
    log.push(...this.write(fd, random.below(6), synced));
    const force = random.chance(0.4);
    if (!force) fs.closeSync(fd);
    const name = random.pick([...this.snapshots.keys()]);
    const { ms, error } = await this.killWithin(daemon, { file: this.revertFile(name), word: force ? 'force' : 'now' });
    if (force) closeDead(fd);
    await unmount(this.mountpoint, { lazy: true });
    const acknowledged = error === undefined;
    if (acknowledged) this.usualMs = 0.8 * this.usualMs + 0.2 * ms;
    if (error !== undefined && !/ENOTCONN|ECONNABORTED|EIO|ENXIO/.test(error)) throw new Error(`a revert: ${error}`);
    const undone = Expectation.after(this.versions, [log], [{ floor: synced, ceiling: Number.POSITIVE_INFINITY }]);
    const done = Expectation.exactly(this.snapshots.get(name) ?? this.versions);
    this.counts.rounds++;
    if (force) this.counts.forced++;
    if (acknowledged) this.counts.acknowledged++;
    this.counts.uncertain += undone.uncertain;
    this.check();
    await this.settle(`round ${round}, ${force ? 'forced ' : ''}revert to ${name}`, { done, undone, acknowledged });
  }

  /** Sends the request, and SIGKILL at a moment of it, or shortly after. */
  private async killWithin(daemon: LaunchedDaemon, request: RevertRequest): Promise<RevertAnswer> {
    const answer = this.ask(request);
    if (Atomics.wait(this.asked, 0, 0, 60_000) === 'timed-out') throw new Error('nobody asked for the revert');
    Atomics.wait(this.asked, 1, 0, this.settings.random.next() * 1.3 * this.usualMs);
    daemon.signal('SIGKILL');
    await endOf(daemon);
    return answer;
  }

  private ask(request: RevertRequest): Promise<RevertAnswer> {
    Atomics.store(this.asked, 0, 0);
    const answer = new Promise<RevertAnswer>((resolve, reject) => {
      this.worker.once('message', resolve);
      this.worker.once('error', reject);
    });
    this.worker.postMessage(request);
    return answer;
  }

  private revertFile(name: string): string {
    return path.join(this.mountpoint, 'snapshots', name, '.revert');
  }

  /** Mounts, and decides what has become of the revert. */
  private async settle(when: string, { done, undone, acknowledged }: Outcome): Promise<void> {
    const daemon = await this.mount();
    const found = this.read(this.disk);
    const asSnapshot = done.violations(found);
    const asBefore = undone.violations(found);
    if (asSnapshot.length > 0 && (acknowledged || asBefore.length > 0)) {
      const before = asBefore.length === 0 ? 'it is what it was before' : `and before: ${asBefore.join('; ')}`;
      const answer = acknowledged ? 'acknowledged' : 'cut off';
      throw new Error(`${when} (${answer}): the disk is not the snapshot: ${asSnapshot.join('; ')}; ${before}`);
    }
    if (!acknowledged && asSnapshot.length === 0) this.counts.cutDone++;
    if (!acknowledged && asSnapshot.length > 0) this.counts.cutUndone++;
    this.versions = found;
    this.compareMount(when);
    await letGo(this.mountpoint);
    await endOf(daemon);
  }

  private mount(session: 'kernel' | 'native' = 'kernel'): Promise<LaunchedDaemon> {
    const { file } = this.image;
    return launchDaemon(daemonConfig(file, this.mountpoint, { session, threads: 4 }), [file]);
  }

  /** Writes runs of sectors anywhere, each with a tag that never comes twice. @param before number of the operation before them */
  private write(fd: number, runs: number, before: number): Operation[] {
    const { random } = this.settings;
    return Array.from({ length: runs }, (_, index) => {
      const first = random.below(DISK_SECTORS);
      const count = Math.min(random.between(1, RUN_SECTORS_MAX), DISK_SECTORS - first);
      const tag = this.tag++;
      fillSectors(this.buffer, first, count, tag);
      const length = count * SECTOR_SIZE;
      const written = fs.writeSync(fd, this.buffer, 0, length, first * SECTOR_SIZE);
      if (written !== length) throw new Error(`a write of ${length} bytes wrote ${written}`);
      return { number: before + index + 1, first, count, tag };
    });
  }

  private read(file: string): Int32Array {
    const bytes = fs.readFileSync(file);
    if (bytes.length !== DISK_SECTORS * SECTOR_SIZE) throw new Error(`${file} has ${bytes.length} bytes`);
    return versionsOf(bytes);
  }

  private compareMount(when: string): void {
    const folder = path.join(this.mountpoint, 'snapshots');
    const names = fs.readdirSync(folder).sort().join(', ');
    if (names !== [...this.snapshots.keys()].join(', ')) throw new Error(`${when}: the snapshots are ${names}`);
    this.compare(this.disk, this.versions, `${when}: the disk`);
    for (const [name, versions] of this.snapshots) {
      this.compare(path.join(folder, name, 'disk'), versions, `${when}: snapshot ${name}`);
    }
  }

  private compare(file: string, versions: Int32Array, what: string): void {
    const lines = Expectation.exactly(versions).violations(this.read(file));
    if (lines.length > 0) throw new Error(`${what}: ${lines.join('; ')}`);
  }

  /** Leaks are allowed, and sometimes given back. A revert changes no copied flag, so none may be wrong, unlike when snapshots are taken. */
  private check(): void {
    const { file, kind } = this.image;
    const { corruptions, leaks, checkErrors, messages } = checkFile(file);
    if (corruptions + checkErrors > 0) throw new Error(`check: ${messages.slice(0, 8).join('; ')}`);
    if (this.settings.qemu) {
      const judged = program('qemu-img', 'check', '-f', kind.format, file);
      if (judged.status !== 0 && judged.status !== 3) throw new Error(`qemu-img check: ${judged.text}`);
      this.counts.checkedByQemu++;
    }
    if (leaks > 0 && this.settings.random.chance(0.3)) {
      const left = repairFile(file, 'leaks');
      if (left.leaks + left.corruptions > 0) throw new Error(`check -r leaks left ${left.leaks} leaks`);
      this.counts.repaired++;
    }
  }
}
