import { dictionary } from "./dictionary";

export const fleet = dictionary({
  "fleet.title": ["Fleet", "设备群"],
  "fleet.about": [
    "Devices that joined, and what they do now. Their records never leave them.",
    "已加入的设备及其当前状态。设备上的记录绝不会离开设备。",
  ],
  "fleet.all": ["Joined", "已加入"],
  "fleet.name": ["Device", "设备"],
  "fleet.state": ["State", "状态"],
  "fleet.standing": ["Standing", "信任状态"],
  "fleet.fingerprint": ["Fingerprint", "指纹"],
  "fleet.joined": ["Joined", "加入时间"],
  "fleet.hidden": [
    "{n} more devices are not in this list; `llmos device list` shows all.",
    "还有 {n} 台设备未列出；`llmos device list` 可显示全部。",
  ],
  "fleet.empty": ["No device has joined yet", "还没有设备加入"],
  "fleet.empty.about": [
    "Make a one-time token here, and give it to `llmos edge join` on the device:",
    "在这里生成一次性令牌，并在设备上交给 `llmos edge join`：",
  ],
  "state.idle": ["idle", "空闲"],
  "state.training": ["training", "训练中"],
  "state.away": ["away", "离线"],
  "standing.trusted": ["trusted", "受信任"],
  "standing.quarantined": ["quarantined", "已隔离"],
  "standing.revoked": ["revoked", "已吊销"],
});
