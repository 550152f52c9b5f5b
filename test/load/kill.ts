/**
 * kill -9 of a real daemon while several threads write, sync and take snapshots; then the image is checked, opened and compared
 * with what was acknowledged. An image lives for several rounds: each goes on where the crash before it has left the disk.
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type LaunchedDaemon, launchDaemon } from '../../src/daemon/launch';
import { unmount } from '../../src/fuse/unmount';
import { SECTOR_SIZE } from '../../src/units';
import { checkFile, repairFile } from '../helpers/images';
import type { Random } from '../helpers/random';
import { daemonConfig, endOf, letGo } from '../mount/cli';
import { type Stranger, startStranger, strangeSectors } from './fio';
import { type ImageKind, type PreparedImage, prepareImage, removeImages } from './kill-images';
import { DISK_SECTORS, OWNED_SECTORS } from './territory';
import { Expectation, versionsOf } from './versions';
import { type RoundOutcome, WRITERS, Writers } from './writers';

export interface KillCounts {
  rounds: number;
  operations: number;
  syncs: number;
  snapshotChanges: number;
  /** Sectors that could hold one thing or another after the crash. */
  uncertain: number;
  checkedByQemu: number;
  comparedByQemu: number;
  repaired: number;
  /** Crashes within a snapshot's change that left copied flags to be set right. */
  copiedFlags: number;
  withFio: number;
}

export function noCounts(): KillCounts {
  return {
    rounds: 0,
    operations: 0,
    syncs: 0,
    snapshotChanges: 0,
    uncertain: 0,
    checkedByQemu: 0,
    comparedByQemu: 0,
    repaired: 0,
    copiedFlags: 0,
    withFio: 0,
  };
}

export interface KillSettings {
  directory: string;
  kind: ImageKind;
  random: Random;
  rounds: number;
  qemu: boolean;
  fio: boolean;
  /** Longest time until the kill, ms. */
  lifeMs: number;
}

const SESSION_CHANCE_NATIVE = 0.15;

export class KilledImage {
  readonly counts = noCounts();
  readonly image: PreparedImage;
  private readonly mountpoint: string;
  private disk: Expectation;
  private snapshots = new Map<string, Expectation>();
  private doubtful = new Set<string>();
  private deleted: string[] = [];
  /** A change of a snapshot was cut off since the last repair. */
  private flagsMayBeWrong = false;
  private tagBase = 0;

  constructor(private readonly settings: KillSettings) {
    const { directory, kind, random } = settings;
    this.mountpoint = path.join(directory, 'mnt');
    fs.mkdirSync(this.mountpoint, { recursive: true });
    this.image = prepareImage(directory, kind, random);
    this.disk = Expectation.exactly(this.image.versions);
  }

  /** Throws with a line that says what is wrong. */
  async live(): Promise<void> {
    for (let round = 0; round < this.settings.rounds; round++) await this.round(round);
    const daemon = await this.mount('kernel');
    this.compareMount('after the last round');
    await letGo(this.mountpoint);
    await endOf(daemon);
    this.check();
    removeImages(this.settings.directory);
  }

  private async round(round: number): Promise<void> {
    const { settings } = this;
    const { random, kind } = settings;
    const session = random.chance(SESSION_CHANCE_NATIVE) ? 'native' : 'kernel';
    const daemon = await this.mount(session);
    const start = this.compareMount(`round ${round}`);
    const writers = new Writers({
      mountpoint: this.mountpoint,
      seed: random.below(2 ** 26),
      punch: session === 'kernel',
      tagBase: this.tagBase,
      start,
      ...(kind.snapshots ? { snapshots: { names: [...this.snapshots.keys()], prefix: `r${round}` } } : {}),
    });
    const stranger = settings.fio && random.chance(0.5) ? startStranger(this.mountpoint, random) : undefined;
    await this.killSoon(daemon, writers);
    await this.settle(await writers.outcome(), stranger);
    await unmount(this.mountpoint, { lazy: true });
    this.flagsMayBeWrong ||= this.doubtful.size > 0;
    this.check();
    if (settings.qemu && kind.format !== 'raw' && random.chance(0.4)) this.compareByQemu();
  }

  private mount(session: 'kernel' | 'native'): Promise<LaunchedDaemon> {
    const config = daemonConfig(this.image.file, this.mountpoint, { session, threads: 4 });
    return launchDaemon(config, [this.image.file]);
  }

  /** Not before something was acknowledged and something came after it: an empty crash proves nothing. */
  private async killSoon(daemon: LaunchedDaemon, writers: Writers): Promise<void> {
    const { random, lifeMs } = this.settings;
    const patience = performance.now() + 60_000;
    await delay(lifeMs * random.next() ** 2);
    while (writers.syncedOperations === 0 || writers.operations <= writers.syncedOperations) {
      if (performance.now() > patience) throw new Error('no write was ever acknowledged');
      await delay(5);
    }
    writers.announceEnd();
    daemon.signal('SIGKILL');
    await endOf(daemon);
  }

  private async settle(outcome: RoundOutcome, stranger: Stranger | undefined): Promise<void> {
    await stranger?.ended;
    if (outcome.wrong.length > 0) throw new Error(outcome.wrong.join('; '));
    const { counts } = this;
    counts.rounds++;
    counts.operations += outcome.operations;
    counts.syncs += outcome.syncs;
    counts.snapshotChanges += outcome.snapshotChanges;
    counts.uncertain += outcome.disk.uncertain;
    if (stranger !== undefined) counts.withFio++;
    this.tagBase += WRITERS * (outcome.operations + 2);
    this.disk = outcome.disk;
    for (const [name, expectation] of outcome.snapshots) this.snapshots.set(name, expectation);
    for (const name of outcome.deleted) this.snapshots.delete(name);
    this.deleted = outcome.deleted;
    this.doubtful = new Set(outcome.doubtful);
  }

  /** Compares the disk and every snapshot through the mount. What is found there is what stays. @returns the disk's versions */
  private compareMount(when: string): Int32Array {
    const versions = this.compare(fs.readFileSync(path.join(this.mountpoint, 'disk')), this.disk, `${when}: the disk`);
    this.disk = Expectation.exactly(versions);
    if (!this.settings.kind.snapshots) return versions;
    const folder = path.join(this.mountpoint, 'snapshots');
    const found = new Set(fs.readdirSync(folder));
    for (const name of this.deleted) {
      if (found.has(name)) throw new Error(`${when}: snapshot ${name} is back although its deletion was acknowledged`);
    }
    for (const [name, expectation] of this.snapshots) {
      if (!found.delete(name)) {
        if (!this.doubtful.has(name)) throw new Error(`${when}: snapshot ${name} is gone`);
        this.snapshots.delete(name);
        continue;
      }
      const bytes = fs.readFileSync(path.join(folder, name, 'disk'));
      this.snapshots.set(name, Expectation.exactly(this.compare(bytes, expectation, `${when}: snapshot ${name}`)));
    }
    if (found.size > 0) throw new Error(`${when}: snapshots that nobody took: ${[...found].join(', ')}`);
    return versions;
  }

  private compare(bytes: Buffer, expected: Expectation, what: string): Int32Array {
    if (bytes.length !== DISK_SECTORS * SECTOR_SIZE) throw new Error(`${what} has ${bytes.length} bytes`);
    const versions = versionsOf(bytes);
    const strange = strangeSectors(bytes, versions, OWNED_SECTORS);
    const lines = [...expected.violations(versions.subarray(0, OWNED_SECTORS)), ...strange];
    if (lines.length > 0) throw new Error(`${what}: ${lines.join('; ')}`);
    return versions;
  }

  /** No wrong reference, by our own check and by QEMU's. Leaks are allowed after a crash, and sometimes given back. */
  private check(): void {
    const { file, kind } = this.image;
    const { random, qemu } = this.settings;
    let { corruptions, leaks, checkErrors, messages } = checkFile(file);
    // Copied flags that disagree with the counts are what a crash within a snapshot's change may leave. They stay as they are half of the
    // time: no data may depend on them.
    if (corruptions > 0 && this.flagsMayBeWrong && messages.every((line) => HARMLESS.test(line))) {
      this.counts.copiedFlags++;
      if (random.chance(0.5)) return;
      ({ corruptions, leaks, checkErrors, messages } = repairFile(file, 'all'));
      this.flagsMayBeWrong = false;
    }
    if (corruptions + checkErrors > 0) {
      throw new Error(`check: ${messages.filter((line) => !HARMLESS.test(line)).join('; ')}`);
    }
    if (qemu && kind.format !== 'raw' && kind.format !== 'qcow') {
      const judged = program('qemu-img', 'check', '-f', kind.format, file);
      if (judged.status !== 0 && judged.status !== 3) throw new Error(`qemu-img check: ${judged.text}`);
      this.counts.checkedByQemu++;
    }
    if (leaks > 0 && kind.format !== 'qcow' && random.chance(0.3)) {
      const left = repairFile(file, 'leaks');
      if (left.leaks + left.corruptions > 0) throw new Error(`check -r leaks left ${left.leaks} leaks`);
      this.counts.repaired++;
    }
  }

  private compareByQemu(): void {
    const raw = path.join(this.settings.directory, 'qemu.raw');
    const { file, kind } = this.image;
    const converted = program('qemu-img', 'convert', '-f', kind.format, '-O', 'raw', file, raw);
    if (converted.status !== 0) throw new Error(`qemu-img convert: ${converted.text}`);
    this.compare(fs.readFileSync(raw), this.disk, 'as qemu-img reads it');
    fs.unlinkSync(raw);
    this.counts.comparedByQemu++;
  }
}

/** What `check` says of copied flags and of leaks, and when it says no more. */
const HARMLESS = /OFLAG_COPIED|^Leaked cluster|^\.\.\. and/;

/** Runs a program to its end. */
export function program(name: string, ...args: string[]): { status: number | null; text: string } {
  const { status, stdout, stderr } = spawnSync(name, args, { encoding: 'utf8' });
  return { status, text: `${stdout}${stderr}` };
}
